"""What a person sees: the answer on stdout, everything else on stderr. Nothing a model writes steers the terminal."""

import re
import sys
from collections.abc import Iterable
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from hetero.thinking import Piece

if TYPE_CHECKING:
    from hetero.config import RunConfig
    from hetero.engine import Engine
    from hetero.tokenizer import Tokenizer

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


KERNELS = "preparing CPU kernels (compiled once, then cached)"


def load_shown(path: str, run: "RunConfig", screen: Screen) -> "tuple[Engine, Tokenizer]":
    """hetero.load, with a person watching."""
    with LoadingBar(screen) as progress:
        progress(KERNELS, 0, 0)
        from hetero.loading import load  # here, because on a machine's first run this import compiles for a minute

        return load(path, run, progress)


class LoadingBar:
    """`progress(stage, done, total)` for hetero.load: a bar on a terminal's stderr, then what took how long."""

    def __init__(self, screen: Screen):
        self._screen = screen
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self._bar = Progress(*columns, console=screen.err, transient=True, disable=not screen.err.is_terminal)
        self._task = self._bar.add_task("opening", total=None)
        self._stage, self._since = "opening", perf_counter()
        self._seconds: dict[str, float] = {}

    def __enter__(self) -> "LoadingBar":
        self._bar.start()
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._begin(stage)
            self._bar.reset(self._task, description=stage, total=total or None)
        self._bar.update(self._task, completed=done, total=total or None)

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self._bar.stop()
        self._begin("")
        if kind is None and self._screen.err.is_terminal:
            parts = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self._seconds.items() if seconds >= 0.1)
            self._screen.note(f"loaded in {sum(self._seconds.values()):.1f} s ({parts})")

    def _begin(self, stage: str) -> None:
        now = perf_counter()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now


class StepBar:
    """Counts steps on a terminal's stderr, with a remark that changes as they pass."""

    def __init__(self, screen: Screen, description: str):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=screen.err, transient=True, disable=not screen.err.is_terminal)
        self._task = self._bar.add_task(description, total=None)

    def __enter__(self) -> "StepBar":
        self._bar.start()
        return self

    def __call__(self, done: int, total: int, remark: str) -> None:
        self._bar.update(self._task, completed=done, total=total, description=remark)

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
