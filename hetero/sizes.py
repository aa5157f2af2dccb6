"""Byte counts as people write them: `24GiB`, `24G`, `1.5 TB`, `25769803776`."""

import re

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_DECIMAL_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes. `G` and `GiB` are 2**30, `GB` is 10**9."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write 24GiB, 24GB or bytes")
    number, prefix, suffix = match[1], match[2].lower(), (match[3] or "").lower()
    unit = _DECIMAL_UNITS[prefix + "b"] if suffix == "b" and prefix else _UNITS[prefix]
    return int(float(number) * unit) if "." in number else int(number) * unit


def format_size(size: int | float) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"
