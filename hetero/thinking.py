"""Tells the `<think>` part of an answer from the answer itself, while it streams."""

from typing import NamedTuple

from hetero.sampler import overlap

OPEN, CLOSE = "<think>", "</think>"


class Piece(NamedTuple):
    text: str
    thinking: bool


class ThinkingSplitter:
    """The first `<think>` block only, and only at the start: later marks are the model's text.

    `opened`: the prompt already ended in `<think>`, so the answer starts inside the block. `begun`: within its text, or
    within the text of the answer, as the prompt holds the begin of it.
    """

    def __init__(self, opened: bool, begun: bool = False):
        self._state = "thinking" if opened else "answer" if begun else "start"
        self._held = ""
        self._skip_newlines = opened and not begun  # the blank lines around the marks belong to neither part

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._held and self._step(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        held, self._held = self._held, ""
        return [Piece(held, self._state == "thinking")] if held else []

    def _step(self, pieces: list[Piece]) -> bool:
        """Moves text from `_held` to `pieces`; False when more text is needed."""
        if self._skip_newlines:
            self._held = self._held.lstrip("\n")
            if not self._held:
                return False
            self._skip_newlines = False
        if self._state == "start":
            return self._start()
        if self._state == "thinking":
            return self._inside(pieces)
        pieces.append(Piece(self._held, False))
        self._held = ""
        return False

    def _start(self) -> bool:
        begin = self._held.lstrip()
        if begin.startswith(OPEN):
            self._state, self._held, self._skip_newlines = "thinking", begin[len(OPEN) :], True
        elif OPEN.startswith(begin):
            return False
        else:
            self._state = "answer"
        return True

    def _inside(self, pieces: list[Piece]) -> bool:
        before, mark, after = self._held.partition(CLOSE)
        if mark:
            self._state, self._held, self._skip_newlines = "answer", after, True
            shown = before.rstrip("\n")
        else:
            shown = before[: len(before) - overlap(before, CLOSE)].rstrip("\n")
            self._held = before[len(shown) :]
        if shown:
            pieces.append(Piece(shown, True))
        return bool(mark)
