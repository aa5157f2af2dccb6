"""Keeps the text of messages from becoming special tokens of a prompt."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hetero.tokenizer import alternatives, well_formed

# Stands inside special-token text that a message contains, so that it is no longer found as a token. A lone surrogate
# never occurs in well-formed text.
MARK = "\udc00"


class Guard:
    """Marks special-token text within values that come from outside the template."""

    def __init__(self, tokens: Sequence[str]):
        # A lookahead, so that a token that begins inside another one is marked as well.
        self._first_character = re.compile(f"(?={alternatives(tokens)})(.)", re.DOTALL) if tokens else None
        self._prefixes = {token[:n] for token in tokens for n in range(1, len(token))}
        self._longest = max(map(len, self._prefixes), default=0)

    def apply(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._mark(well_formed(value))
        if isinstance(value, Mapping):
            return {self.apply(key): self.apply(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.apply(item) for item in value]
        return value

    def _mark(self, text: str) -> str:
        if self._first_character:
            text = self._first_character.sub(rf"\1{MARK}", text)
        # The start of a token at the end of one text, which the next text might complete.
        tail = next((n for n in range(min(self._longest, len(text)), 0, -1) if text[-n:] in self._prefixes), 0)
        for n in range(tail, 0, -1):
            if text[-n:] in self._prefixes:
                text = text[: len(text) - n + 1] + MARK + text[len(text) - n + 1 :]
        return text
