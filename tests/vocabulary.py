"""A small byte-level BPE vocabulary: DeepSeek's special tokens, every byte, merges learnt here, filler words."""

import collections
import itertools

import gguf

SPECIAL_TOKENS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<｜Assistant｜>{{ m['content'] }}<｜end▁of▁sentence｜>"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
PARAGRAPH = """a small model keeps its weights in memory and reads every one of them for each token that it writes
so the speed of the memory is the speed of the answer while the rest of the machine waits for the next line
hello world this is the test of a runtime that streams the answer of the model to the user word by word"""


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself if printable, else the next code point from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = itertools.count(256)
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def learn_merges(text: str, count: int) -> list[tuple[str, str]]:
    words = [["Ġ", *word] for word in text.split()]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = collections.Counter(pair for word in words for pair in itertools.pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in words:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def filler_words(used: set[str]):
    """Pronounceable words, so that whatever id a random model picks prints as text."""
    syllables = [c + v for c in "bcdfghjklmnprstvz" for v in "aeiou"]
    for length in itertools.count(1):
        for word in itertools.product(syllables, repeat=length):
            if (token := "Ġ" + "".join(word)) not in used:
                yield token


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    tokens = [*SPECIAL_TOKENS, *byte_characters()]
    if size < len(tokens):
        raise ValueError(f"a byte-level vocabulary needs at least {len(tokens)} tokens, {size} asked for")
    merges = learn_merges(PARAGRAPH, min(200, size - len(tokens)))
    tokens += [left + right for left, right in merges]
    tokens += itertools.islice(filler_words(set(tokens)), size - len(tokens))
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_token_list(tokens)
    writer.add_token_types([control] * len(SPECIAL_TOKENS) + [normal] * (size - len(SPECIAL_TOKENS)))
    writer.add_token_merges([f"{left} {right}" for left, right in merges])  # llama.cpp refuses gpt2 without merges
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
