"""How each pre-tokenizer named in `tokenizer.ggml.pre` cuts text before byte-pair merging.

The patterns are those of the models' own tokenizer.json (Kimi-K2: `pat_str` of its tiktoken file), run by the same
engine. llama.cpp rewrites some of them for its own regex engine; docs/tokenizer.md lists where that shows.
"""

from collections.abc import Callable

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

# Letters with case, as DeepSeek-LLM's tokenizer.json spells the class. Escaped: those that an editor's Unicode
# normalisation would turn into another character.
CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7d"
    "ᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇ"
    "Ꞌ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
CJK_AND_HANGUL = "[一-龥ࠀ-一가-퟿]+"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# Character-class intersection (`&&`): the letters of a word, none of them Han.
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

DEEPSEEK_LLM = (r"[\r\n]", rf"\s?[{CASED_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", CJK_AND_HANGUL)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_AND_HANGUL)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
KIMI_K2 = (
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    rf"{CONTRACTIONS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# llama.cpp's own fallback for a file that names no pre-tokenizer; no model was trained with it.
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


def split(*patterns: str, digits: bool = False) -> PreTokenizer:
    """Each pattern cuts the pieces that the one before it left; what lies between two matches is a piece too."""
    steps: list[PreTokenizer] = [Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    if digits:
        steps.append(Digits(individual_digits=True))
    return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS: dict[str, Callable[[], PreTokenizer]] = {
    "deepseek-llm": lambda: split(*DEEPSEEK_LLM, digits=True),
    "deepseek-coder": lambda: split(*DEEPSEEK_CODER, digits=True),
    "deepseek-v3": lambda: split(*DEEPSEEK_V3),
    "kimi-k2": lambda: split(*KIMI_K2),
    "gpt-2": lambda: split(GPT2),
    "default": lambda: split(*DEFAULT),
}
