"""This machine is measured as ever, but each figure once, over little memory, and kept for such tests only."""

from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from hetero import contest, cpu_rates, prediction, saved_machine
from hetero.stopwatch import Stopwatch

_SERVE = contest._serve


def shorten(patch: pytest.MonkeyPatch, machines: Path) -> None:
    """In this process and those of contests; what was found is kept in the directory `machines`."""
    patch.setattr(saved_machine, "directory", lambda: machines)
    patch.setattr(cpu_rates, "ROTATED_BYTES", cpu_rates.LEAST_ROTATED)
    patch.setattr(prediction, "probe", partial(prediction.probe, stopwatch=Stopwatch(seconds=0.0, samples=1)))
    patch.setattr(contest, "_serve", partial(_serve, machines))


def _serve(machines: Path, pipe: Connection, kind: str, arguments: tuple[Any, ...]) -> None:
    """A contest's process, where modules are as they were written."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, machines)
        _SERVE(pipe, kind, arguments)
