"""What the planner is told of this machine, measured anew: the predictions of the sections after it rest on it."""

from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import Any
from unittest import mock

from benchmarks.gpu_cases import Case
from benchmarks.gpu_engines import MODEL
from benchmarks.gpu_setup import Setup, figure
from hetero.probe import probe, weight_types
from hetero.stopwatch import Stopwatch
from placement import preset


def cases(setup: Setup) -> dict[str, Case]:
    return {"machine": partial(machine, setup)}


def machine(setup: Setup) -> Iterator[dict[str, Any]]:
    started = perf_counter()
    if setup.plain:
        with mock.patch("hetero.probe.write", return_value=""):  # what the user's machine was found to be stays
            found = probe(setup.pool, (), stopwatch=Stopwatch(0.0, 1), refresh=True)
    else:
        found = probe(setup.pool, weight_types(preset(MODEL)), refresh=True)
    yield figure("probe", perf_counter() - started, "s", machine=found.to_json())
