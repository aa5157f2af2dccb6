"""After a load no pass launches a kernel that was not launched before: none is compiled in the middle of an answer."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpu_kernels
import hetero
import hetero.hybrid
from hetero import RunConfig
from hetero.engine import Engine
from hetero.errors import ResourceError
from hetero.gpu_side import GpuSide
from hetero.offload import Doorbells
from hetero.pace import Pace
from hetero.rehearsal import token_counts
from tests import plain_gpu
from tests.recording_device import NoProducts, RecordingDevice
from tests.test_hybrid import ARRANGEMENTS

CONTEXT = 1500


@pytest.fixture
def load(monkeypatch, tmp_path: Path) -> Iterator[Callable[..., tuple[Engine, RecordingDevice]]]:
    engines: list[Engine] = []
    open_by = Doorbells.open

    def open_engine(path: Path, name: str, capability: int = 89, **run: Any) -> tuple[Engine, RecordingDevice]:
        device = RecordingDevice(capability, 132)
        plain_gpu.pretend(monkeypatch)
        monkeypatch.setattr("hetero.gpu_loading.open_side", lambda: GpuSide(device, gpu_kernels))
        monkeypatch.setattr(Doorbells, "open", lambda bells: open_by(bells, "polling kernel"))
        settings = {"context": CONTEXT, "threads": 2, **run}
        config = RunConfig(**settings, device="cpu")
        plan = plain_gpu.placed(path, tmp_path / "plan.json", config, *ARRANGEMENTS[name])
        engine, _ = hetero.load(path, RunConfig(**settings, plan=plan))
        engines.append(engine)
        return engine, device

    with NoProducts():
        yield open_engine
    for engine in engines:
        engine.close()


FEW = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 126, 127, 128, 129, 200, 257, 300, 777, 1024)
EVERY = (*range(1, 140), *range(141, 1024, 17))


def passes(engine: Engine, rng: np.random.Generator, counts: Sequence[int] = FEW) -> Iterator[str]:
    """Prompts at many positions; tokens with logits for each, for some, for the last one."""
    for at, count in enumerate(counts):
        logits = ([], range(count), [count - 1], [0, count // 2])
        for start, logits_at in ((0, logits[at % 2]), (int(rng.integers(0, CONTEXT - count)), logits[at % 4])):
            engine.forget()
            engine.cache.extend(0, [7] * start)
            engine.forward([7] * count, logits_at)
            yield f"{count} tokens after {start}, logits of {len(logits_at)}"


FILES: list[tuple[str, str, dict[str, Any], str, int, str]] = [
    ("tiny", "Q4_K", {}, "attention, some experts", 89, "f16"),
    ("tiny", "Q6_K", {}, "everything", 90, "q8_0"),
    ("tiny", "Q8_0", {"kv_b_split": False}, "two layers, some experts", 80, "f16"),
    ("tiny", "Q3_K", {"q_lora": 0, "shared_experts": 2}, "dense parts, a layer of experts", 120, "f16"),
]


@pytest.mark.parametrize("counts", [FEW, pytest.param(EVERY, marks=pytest.mark.soak)], ids=["few", "every"])
@pytest.mark.parametrize(("shape", "type", "changes", "arrangement", "capability", "kv"), FILES)
def test_no_pass_launches_what_was_not_rehearsed(
    shape: str,
    type: str,
    changes: dict[str, Any],
    arrangement: str,
    capability: int,
    kv: str,
    counts: Sequence[int],
    load,
    model_file,
) -> None:
    engine, device = load(model_file(shape, type, **changes), arrangement, capability, kv=kv)
    rehearsed, rng = set(device.binaries), np.random.default_rng(0)
    device.choose = lambda shape: rng.integers(0, engine.config.experts, shape, np.int32)
    for name in passes(engine, rng, counts):
        unseen = [words for key, words in device.binaries.items() if key not in rehearsed]
        assert not unseen, (name, unseen)


class AtEachLayer(Pace):
    """Pauses wherever it may."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def fitting(self, kind: Any, costs: np.ndarray) -> int:
        return 0


def passes_of_ten(engine: Engine, rng: np.random.Generator) -> Iterator[str]:
    """Steps of some of the sequences, and prompts of any of them, whole or in pieces with steps between these."""
    cache, context = engine.cache, engine.context
    for rows in ([0], [5], [1, 2], [3, 0, 9], [0, 1, 3, 8, 2], range(8), range(9), range(10)):
        for most in (0, 70, context - 8):
            for row in range(10):
                cache.truncate(row, 0)
                cache.extend(row, [7] * int(rng.integers(0, most + 1)))
            engine.step(rows, [7] * len(rows))
            yield f"a step of {list(rows)} after {cache.lengths.tolist()}"
    for at, count in enumerate((1, 2, 5, 16, 65, 127, 129, 300, 777, 1024)):
        row = at % 10
        for start, pace in ((0, AtEachLayer()), (int(rng.integers(0, context - count)), Pace())):
            cache.truncate(row, 0)
            cache.extend(row, [7] * start)
            for _ in engine.read(row, [7] * count, pace):
                for others in ([(row + 1) % 10], [(row + 1) % 10, (row + 3) % 10]):
                    engine.step(others, [7] * len(others))
                    for other in others:
                        cache.truncate(other, 0)
            yield f"{count} tokens of sequence {row} after {start}"


@pytest.mark.parametrize(
    ("shape", "type", "changes", "arrangement", "capability", "kv"),
    [FILES[0], *(pytest.param(*file, marks=pytest.mark.soak) for file in FILES[1:])],
)
def test_no_pass_beside_others_launches_what_was_not_rehearsed(
    shape: str,
    type: str,
    changes: dict[str, Any],
    arrangement: str,
    capability: int,
    kv: str,
    load,
    model_file,
) -> None:
    """Ten sequences, more than there are recorded steps for; so many pages that rows of the table are not aligned."""
    path = model_file(shape, type, **changes)
    engine, device = load(path, arrangement, capability, kv=kv, sequences=10, context=1450)
    rehearsed, rng = set(device.binaries), np.random.default_rng(0)
    assert engine.cache.block_table.shape == (10, 23)
    device.choose = lambda shape: rng.integers(0, engine.config.experts, shape, np.int32)
    for name in passes_of_ten(engine, rng):
        unseen = [words for key, words in device.binaries.items() if key not in rehearsed]
        assert not unseen, (name, unseen)


def test_nothing_is_rehearsed_in_vain(load, model_file) -> None:
    """Of what was launched at load all but little is launched by passes, too."""
    engine, device = load(model_file("tiny", "Q4_K"), "attention, some experts")
    rehearsed, rng = dict(device.binaries), np.random.default_rng(0)
    device.binaries.clear()
    device.choose = lambda shape: rng.integers(0, engine.config.experts, shape, np.int32)
    for _ in passes(engine, rng):
        pass
    vain = [words for key, words in rehearsed.items() if key not in device.binaries]
    assert len(vain) < 0.1 * len(rehearsed), vain


def test_every_range_of_numbers_of_tokens_is_met() -> None:
    """Also ranges that reach from some number to a third above only."""
    for most in (1, 7, 8, 9, 64, 1000, 1024):
        counts = token_counts(most)
        assert counts == sorted(set(counts)) and counts[0] == 1 and counts[-1] == most
        for first in range(1, most):
            end = min(most, first if first < 8 else first * 4 // 3)
            assert any(first <= count <= end for count in counts), (most, first)
    assert len(token_counts(1024)) < 32


def test_the_longest_pass_comes_first(load, model_file, monkeypatch) -> None:
    """It stands at the end of the context."""
    seen: list[tuple[int, int]] = []
    compute = hetero.hybrid.HybridModel.compute

    def note(self, ids, step, layers, logits_at=None):
        seen.append((len(ids), int(step.positions[-1])))
        return compute(self, ids, step, layers, logits_at)

    monkeypatch.setattr(hetero.hybrid.HybridModel, "compute", note)
    load(model_file("tiny", "Q4_K"), "dense parts")
    assert seen[0] == (1024, 24 * 64 - 1) and max(seen) == seen[0]


def test_a_gpu_that_is_too_small_is_refused_at_the_load(load, model_file, monkeypatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has ...")

    monkeypatch.setattr(hetero.hybrid, "rehearse_gpu", full)
    with pytest.raises(ResourceError, match=r"longest pass does not fit on the GPU: CUDA out of memory; lower --gpu"):
        load(model_file("tiny", "Q4_K"), "dense parts")
