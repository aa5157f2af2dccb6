"""Strings that tell tokenizers apart: made by rule from a fixed seed, so that every run sees the same ones."""

import random

WORDS = {
    "latin": "the Quick brown FOX it's we'll I'D they've naïve façade Straße "
    "ŒUVRE ŉ ſ ﬁn İstanbul ıspanak camelCase HTMLParser",
    "cyrillic": "быстрая Бурая лиса Ёжик ЩУКА їжак љубав",
    "greek": "Ταχεία αλεπού ΆΈΉ ώριμος ᾼ ᾳ ΐ \u1f7d \u1fbe \u1fd3 \u2126",
    "armenian georgian": "Արագ շագանակագույն աղվես ყავისფერი მელა ႠႡ ᲐᲑ",
    "hebrew arabic": "שׁוּעָל חום ثَعْلَب بُنِّيّ سريع ٠١٢٣ ۴۵۶ لا إله",
    "indic": "तेज़ भूरी लोमड़ी দ্রুত বাদামী வேகமான పిల్లి ക്ഷ ගඳ १२३ ৪৫৬",
    "thai lao khmer": "สุนัขจิ้งจอก ໝາຈອກ កញ្ជ្រោង ๑๒๓ มั่ง",
    "cjk": "敏捷的棕色狐狸 跳過 懒狗 すばやい キツネ ｷﾂﾈ 빠른 여우 "
    "한글 漢字かな交じり 𠮷野家 〇々〆ヶ ㍿ ㄅㄆㄇ 㐀 龥龦 豈",
    "african american": "አማርኛ ⵜⴰⵎⴰⵣⵉⵖⵜ ᏣᎳᎩ ꮳꮃꭹ ᐃᓄᒃᑎᑐᑦ ߒߞߏ",
    "math": "∀x∈ℝ: ⌈x⌉ ≥ x √2≈1.414 ½ Ⅻ ² ₃ x̄ ℵ₀ 𝔸𝓑𝒸 𝟘𝟙 ∑∏∫ µm Ω K Å ℃",
    "punctuation": "“quoted” ‘single’ «guillemets» … — – ¿qué? ¡sí! 、。「」『』【】 "
    "！？：； ～ ・ ･ # @ $5 £6 €7 ^_^ `x` ~/a | b \\ /",
    "emoji": "😀 👩‍👩‍👧‍👦 👍🏽 🇩🇪🇯🇵 ❤️ ☺︎ 1️⃣ #️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ✈ ©®™",
    "marks": "e\u0301 a\u0308\u0304 Z\u0351\u036b\u0343a\u030al\u0347g\u0321o\u0489 \u0301start \u20ddo \u0e47 \u093f",
    "digits": "0 12 123 1234 12345 1234567890 3.14159 1,000,000 1e-10 0x1F 2026-11-21 12:34:56 ４２ 1²3",
    "symbols": "+ - = < > <= >= != == -> => :: ++ -- && || ** // /* */ "
    "<!-- --> ${x} {{y}} [z] (w) a.b.c x_y __init__ @app",
}
CODE = (
    "def f(x: int) -> int:\n    return x ** 2  # square\n\n\nif __name__ == '__main__':\n\tprint(f(3))\n",
    '#include <stdio.h>\r\nint main(void) {\r\n\tprintf("%d\\n", 42);\r\n\treturn 0;\r\n}\r\n',
    "SELECT a.*, COUNT(*) AS n FROM t AS a WHERE x >= 3.5 AND y LIKE '%z_' GROUP BY 1;",
    "const α = async ({ b, ...c }) => await b?.d ?? `${c}\\u00e9`;\n",
    "<div class=\"x y\" data-z='1'>&nbsp;text<br/></div>\n<!-- c -->",
    '{"key": [1, 2.5e-3, null, true], "κλειδί": "τιμή\\n"}',
    '$ cd ~/src && make -j8 2>&1 | tee log.txt; echo "done: $?"\n',
    'fn main() { let v: Vec<&\'static str> = vec!["a", r#"b"#]; println!("{:?}", v); }',
    "\\begin{align} e^{i\\pi} + 1 &= 0 \\\\ \\int_0^\\infty e^{-x^2} \\, dx \\end{align}",
    "- [ ] item\n  - **bold** _it_ `code`\n\n| a | b |\n|---|---|\n```py\nx=1\n```\n",
)
SPACES = (
    *" \t\n\r\x0b\x0c\x1c\x85\u00a0\u2003\u2028\u3000\u200b\ufeff",
    *("  ", "   ", "\n\n", "\r\n", " \n", "\n ", "\t\n"),
)
CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x200D, 0x202E, 0xFDD0, 0xFFFC, 0xFFFD, 0xFFFE)))


def runs() -> list[str]:
    """Runs of every length that a pattern might count: spaces, newlines, digits, letters, punctuation."""
    strings = []
    for unit in (*SPACES, "1", "0", "٣", "x", "X", "é", "中", "あ", "ก", "!", ".", "😀", "\u0301", "½"):
        for count in (1, 2, 3, 4, 5, 7, 8, 16):
            strings += [unit * count, "a" + unit * count, unit * count + "b", f"a {unit * count} 1{unit}\n"]
    return strings


def mixtures(count: int, seed: int) -> list[str]:
    """Words of one or several scripts, joined by all kinds of white space."""
    chance = random.Random(seed)
    words = [text.split() for text in WORDS.values()]
    strings = []
    for _ in range(count):
        scripts = chance.sample(words, chance.choice((1, 1, 2, 4)))
        pieces = []
        for _ in range(chance.randint(1, 12)):
            pieces += [chance.choice(chance.choice(scripts)), chance.choice(SPACES) if chance.random() < 0.4 else " "]
        strings.append("".join(pieces[: chance.choice((-1, len(pieces)))]))
    return strings


def characters(count: int, seed: int) -> list[str]:
    """Any characters next to each other, most from the planes in use; half of them near ASCII."""
    chance = random.Random(seed)
    planes = (
        (0x20, 0x7E),
        (0xA0, 0x24F),
        (0x300, 0x36F),
        (0x370, 0x1FFF),
        (0x2000, 0x2BFF),
        (0x2E80, 0xD7FF),
        (0xF900, 0xFFFD),
        (0x1F300, 0x1FAFF),
        (0x20000, 0x2A6DF),
    )
    return [
        "".join(
            chr(chance.randint(*chance.choice(planes))) if chance.random() < 0.5 else chr(chance.randint(9, 126))
            for _ in range(chance.randint(1, 24))
        )
        for _ in range(count)
    ]


def long_strings() -> list[str]:
    chance = random.Random(3)
    return [
        "a" * 20_000,
        " " * 20_000 + "x",
        "\n" * 5_000,
        "7" * 10_001,
        "中" * 5_000,
        "ab " * 10_000,
        "".join(chance.choice("ACGT") for _ in range(20_000)),
        " ".join(" ".join(WORDS.values()).split() * 30),
    ]


def corpus() -> list[str]:
    plain = ["", *WORDS.values(), *CODE, CONTROLS, *CONTROLS, *("a" + c + "b" for c in CONTROLS), *SPACES]
    return list(dict.fromkeys([*plain, *runs(), *mixtures(500, 1), *characters(400, 2), *long_strings()]))


def surrogates() -> list[tuple[str, str]]:
    """Ill-formed text, and what it is read as."""
    return [
        ("\ud800", "\ufffd"),
        ("\udc00", "\ufffd"),
        ("a\udfffb", "a\ufffdb"),
        ("\ud83d\ude00", "😀"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("x\ud83d", "x\ufffd"),
        ("\ud83d\ud83d\ude00y", "\ufffd😀y"),
        ("é\ud800中\udbff\udfff", "é\ufffd中\U0010ffff"),
    ]
