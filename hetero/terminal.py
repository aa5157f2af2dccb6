"""What a person sees: the answer on stdout, everything else on stderr. Nothing a model writes steers the terminal."""

import re
import sys
from collections.abc import Iterable

from rich.console import Console

from hetero.thinking import Piece

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 but \t and \n; DEL; C1


def printable(text: str) -> str:
    return _CONTROL_CHARACTERS.sub("", text)


def one_line(error: Exception) -> str:
    text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
    return printable(" ".join(text.split()))


class Screen:
    """Two consoles. On a terminal the thinking part is dimmed; elsewhere it goes to stderr: stdout is the answer."""

    def __init__(self) -> None:
        self.out = Console(file=sys.stdout, highlight=False)
        self.err = Console(file=sys.stderr, highlight=False)

    def stream(self, pieces: Iterable[Piece]) -> None:
        """Shows pieces as they come, and ends the line, also when interrupted."""
        thinking, ended = False, True
        try:
            for piece in pieces:
                if thinking and not piece.thinking:
                    self._thinking("\n\n" if self.out.is_terminal else "\n")
                thinking = piece.thinking
                self._thinking(piece.text) if thinking else self._answer(piece.text)
                ended = piece.text.endswith("\n")
        finally:
            if not ended:
                self._thinking("\n") if thinking else self._answer("\n")

    def _answer(self, text: str) -> None:
        if self.out.is_terminal:
            self.out.out(printable(text), end="")
        else:  # a file or another program gets every character as it is
            sys.stdout.write(text)
        sys.stdout.flush()

    def _thinking(self, text: str) -> None:
        console = self.out if self.out.is_terminal else self.err
        console.out(printable(text), style="dim", end="")

    def note(self, text: str) -> None:
        """Information beside the answer."""
        self.err.out(printable(text), style="dim")

    def error(self, error: Exception) -> None:
        self.err.out(f"hetero: {one_line(error)}")
