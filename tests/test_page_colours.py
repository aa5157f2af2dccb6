"""The web page's colours, as its style sheet has them."""

import re

from hetero.server.page_files import DIRECTORY


def test_text_stands_out_from_what_is_behind_it() -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1, in the light colours and in the dark ones."""
    style = (DIRECTORY / "style.css").read_text(encoding="utf-8")
    for scheme in (style.partition("@media")[0], style.partition("prefers-color-scheme: dark")[2]):
        colours = {name: luminance(value) for name, value in re.findall(r"--(\w+): #([0-9a-f]{6});", scheme)}
        for text in ("ink", "soft", "faint", "accent", "warn", "bad"):
            for behind in ("back", "side", "raised"):
                light, dark = sorted((colours[text], colours[behind]), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, behind)


def luminance(colour: str) -> float:
    """Relative, as WCAG defines it, of six hexadecimal digits."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
