"""Engines for the benchmark of a GPU: a slice of DeepSeek-V3 or the bundled model, on the CPU, on the GPU, or on both.

On a plain device the bundled model stands for both, and twins for the GPU's kernels.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Any
from unittest import mock

from benchmarks.gpu_setup import Setup
from hetero import RunConfig, demo, load
from hetero.engine import Engine
from hetero.graph import Capture
from placement import Predictor, Settings

MODEL, LAYERS = "deepseek-v3:q4_k_m", 3
CONTEXT, SMALL_CONTEXT = 32768 + 128, 1024


class Opened:
    """An engine, and what the benchmark asks of it."""

    def __init__(self, engine: Engine, layers: int, seconds: float):
        self.engine, self.layers, self.seconds = engine, layers, seconds
        self.model: Any = engine.model
        self._capture: Capture | None = getattr(self.model, "capture", None)

    @property
    def meets(self) -> bool:
        """Whether GPU and CPU share a pass."""
        return bool(getattr(self.model, "doorbells", None) and self.model.doorbells.meetings)

    @property
    def doorbells(self) -> str:
        return str(self.model.doorbells) if self.meets else ""

    @property
    def gpu_bytes(self) -> int:
        planned = self.engine.planned
        return planned.gpu_bytes if planned else 0

    @property
    def moe_layers(self) -> int:
        return sum(meeting.part.used > 0 for meeting in self.model.doorbells.meetings)

    def launch_anew(self) -> None:
        """From now on no pass is replayed."""
        self.model.capture = None
        self._forget_steps()

    def capture_again(self) -> None:
        self.model.capture = self._capture
        self._forget_steps()

    def _forget_steps(self) -> None:
        self.model.steps.clear()
        if self.model.doorbells.flags is not None:
            self.model.doorbells.flags.forget()

    def predictor(self) -> Predictor:
        from hetero.prediction import predictor

        return predictor(self.engine)


@contextmanager
def opened(setup: Setup, where: str) -> Iterator[Opened]:
    """`where`: "cpu", "gpu" (as much as fits), "hybrid" (all but the routed experts on the GPU)."""
    device = "cpu" if where == "cpu" else "cuda"
    with ExitStack() as stack:
        if where == "hybrid":  # no option says so, since no user would want it
            stack.enter_context(mock.patch("hetero.planning.Settings", partial(Settings, gpu_experts=0)))
        if setup.plain:
            stack.enter_context(no_gpu())
        started = perf_counter()
        engine, layers = _load(setup, device)
        stack.callback(engine.close)
        yield Opened(engine, layers, perf_counter() - started)


def _load(setup: Setup, device: Any) -> tuple[Engine, int]:
    if setup.plain:
        engine, _ = load(demo.path(), RunConfig(context=SMALL_CONTEXT, threads=2, device=device))
        return engine, engine.config.layers
    from hetero.synthetic import load_slice, make_slice

    run = RunConfig(context=CONTEXT, device=device)
    made = make_slice(MODEL, setup.more.get("layers") or LAYERS, run, CONTEXT)
    return load_slice(made, run), len(made.layers)


@contextmanager
def no_gpu() -> Iterator[None]:
    """Loading finds a GPU, and twins are its kernels."""
    import pytest

    from tests import plain_gpu

    with pytest.MonkeyPatch.context() as patch:
        plain_gpu.pretend(patch)
        yield
