"""Passes over a few tokens at fixed addresses: recorded, replayed, never patched. Plain torch stands in for the GPU."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import hetero
from hetero import RunConfig, graph
from hetero.cache import LatentCache
from hetero.engine import Engine
from hetero.errors import KernelError
from hetero.graph import WARM_PASSES, CudaCapture
from tests import plain_gpu
from tests.prompts import prompt
from tests.test_hybrid import DENSE
from tests.test_recorded import batch_of

IDS = prompt(90)


class Recorder:
    """In the place of CudaCapture: what is replayed is launched again."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def __call__(self, warm: Callable[[], None], launch: Callable[[], None]) -> Callable[[], None]:
        for _ in range(WARM_PASSES):
            self.log.append("warm")
            warm()
        self.log.append("record")
        launch()

        def replay() -> None:
            self.log.append("replay")
            launch()

        return replay


@pytest.fixture(params=["dense parts", "two layers"])
def engine(request, model_file, tmp_path, monkeypatch) -> Iterator[Engine]:
    plain_gpu.pretend(monkeypatch)
    path, run = model_file("tiny", "F16"), RunConfig(context=128, threads=2, device="cpu")
    layers = (0, 1, 2, None) if request.param == "dense parts" else (0, 1)
    chosen = lambda part, layer: part in DENSE and layer in layers  # noqa: E731
    plan = plain_gpu.placed(path, tmp_path / "plan.json", run, chosen, {1: (0, 9)})
    engine, _ = hetero.load(path, RunConfig(context=128, threads=2, plan=plan))
    yield engine
    engine.close()


def test_replays_compute_what_launches_compute(engine: Engine) -> None:
    runs, recorder = [], Recorder()
    for capture in (None, recorder):
        engine.model.capture, engine.model.steps = capture, {}
        engine.forget()
        engine.prefill(list(IDS[:60]))
        logits = [
            engine.scores(list(IDS[at : at + n])) for at, n in ((60, 1), (61, 1), (62, 2), (64, 4), (68, 3), (71, 1))
        ]
        engine.cache.truncate(0, 62)
        logits += [engine.scores(list(IDS[at : at + 2])) for at in range(62, 70, 2)]
        runs.append(np.concatenate(logits))
    np.testing.assert_array_equal(runs[0], runs[1])
    first = [*["warm"] * WARM_PASSES, "record", "replay"]
    assert recorder.log == [*first, "replay", *first, *first, *["replay"] * 5], "3 tokens have no graph"


def test_a_recorded_pass_reads_the_same_memory_again(engine: Engine) -> None:
    recorder = engine.model.capture = Recorder()
    engine.model.steps = {}
    engine.forget()
    engine.scores([IDS[0]])
    inputs, chosen = engine.model.steps[1].inputs, engine.model.steps[1].chosen
    places = [inputs.x.data_ptr(), *(t.data_ptr() for t in vars(inputs.step).values() if torch.is_tensor(t))]
    engine.scores([IDS[1]])
    assert inputs is engine.model.steps[1].inputs and int(inputs.step.positions[0]) == 1
    assert places == [inputs.x.data_ptr(), *(t.data_ptr() for t in vars(inputs.step).values() if torch.is_tensor(t))]
    assert len(chosen) == 2 and recorder.log.count("record") == 1


def test_other_caches_are_not_mixed_up(engine: Engine) -> None:
    engine.model.capture, engine.model.steps = Recorder(), {}
    side = engine.model.gpu
    cache = LatentCache(engine.config, RunConfig(), 64, (engine.model.on_gpu, side))
    engine.forget()
    mine = [engine.scores([id]) for id in IDS[:5]]
    theirs = [engine.model.forward(batch_of(cache, [0], [id]), cache.layers) for id in IDS[:5]]
    np.testing.assert_allclose(np.concatenate(mine), np.concatenate(theirs), rtol=0, atol=1e-5)


def test_a_pass_makes_the_gpu_that_of_its_thread(engine: Engine, monkeypatch) -> None:
    threads = list[int]()
    monkeypatch.setattr(engine.model.gpu, "use", lambda: threads.append(threading.get_ident()))
    for call in (partial(engine.scores, [IDS[0]]), engine.model.choices):
        thread = threading.Thread(target=call)
        thread.start()
        ident = thread.ident
        thread.join()
        assert threads.pop() == ident and not threads


class Cuda:
    """The calls of torch.cuda that a capture makes, written down."""

    def __init__(self, fails: bool = False) -> None:
        self.log: list[str] = []
        self.fails, self.calls = fails, 0

    def Stream(self) -> Any:
        return self

    def current_stream(self) -> str:
        return "current"

    def wait_stream(self, other: str) -> None:
        self.log.append(f"wait for {other}")

    def synchronize(self) -> None:
        self.log.append("synchronize")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append("aside")
        yield
        self.log.append("back")

    def CUDAGraph(self) -> Any:
        return type("Graph", (), {"replay": lambda graph: self.log.append("replay")})()

    @contextmanager
    def graph(self, graph: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.log.append(f"begin {capture_error_mode}")
        yield
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.log.append("end")


def test_the_calls_of_a_capture(monkeypatch) -> None:
    cuda = Cuda()
    monkeypatch.setattr(graph.torch, "cuda", cuda)
    replay = CudaCapture()(lambda: cuda.log.append("warm"), lambda: cuda.log.append("launch"))
    replay()
    warm = ["warm"] * WARM_PASSES
    assert cuda.log == [
        "wait for current", "aside", *warm, "back", "synchronize", "begin thread_local", "launch", "end", "replay",
    ]  # fmt: skip


def test_a_capture_that_fails_names_the_way_around(monkeypatch) -> None:
    monkeypatch.setattr(graph.torch, "cuda", Cuda(fails=True))
    with pytest.raises(
        KernelError, match=r"CUDA Graph failed: operation not permitted .* capturing; run with --no-graph"
    ):
        CudaCapture()(lambda: None, lambda: None)
