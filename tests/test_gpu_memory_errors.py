"""The GPU's memory runs out in a pass: whose request ends, that the others go on to the bit, and that nothing stays.

Plain torch stands in for the GPU; the allocations that fail are injected in the place of calls of a pass.
"""

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

import pytest
import torch

import hetero
import hetero.hybrid
from hetero import RunConfig, Sampling
from hetero.engine import Engine
from hetero.errors import GpuMemoryError, ResourceError
from hetero.offload import Doorbells
from hetero.request import Ended, Event, Generated, Request
from hetero.scheduler import Scheduler
from hetero.waiting import TWINS
from tests import plain_gpu
from tests.prompts import prompt
from tests.test_hybrid import dense

FULL = "CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of 23.99 GiB of which ..."
SAID = r"the GPU's memory ran out in a pass: CUDA out of memory\. Tried to allocate 512\.00 MiB; .*lower --gpu-memory"
PATIENCE = 60.0  # seconds, after which a test has failed
Place = tuple[Callable[[Any], Any], str, int]  # whose, which, and the how manieth call

# A prompt is read in two halves, one a stage behind the other
IN_PROMPTS: dict[str, Place] = {
    "the first norm": (lambda model: model.gpu, "rms_norm", 1),
    "behind a submit": (lambda model: model.blocks[1].feed_forward, "_experts", 1),
    "attention while the other half is submitted": (lambda model: model.gpu, "mla_expanded", 4),
    "the last layer": (lambda model: model.blocks[2].attention, "project", 2),
}
IN_STEPS: dict[str, Place] = {
    "the first norm": (lambda model: model.gpu, "rms_norm", 1),
    "behind a submit": (lambda model: model.blocks[1].feed_forward, "_experts", 1),
    "a collect": (lambda model: model.blocks[2].feed_forward, "collect", 1),
    "the head": (lambda model: model, "output", 1),
}


class Exhausted:
    """Calls of a pass for which there is no memory."""

    def __init__(self, engine: Engine, patch: pytest.MonkeyPatch):
        self.model: Any = engine.model
        self.patch = patch
        self.tokens = self.raised = 0  # of the pass: as the last norm saw it
        self.rows: tuple[int, ...] = ()  # of the last step
        self.steps: Counter[tuple[int, ...]] = Counter()
        self.seen: list[weakref.ref[torch.Tensor]] = []  # arrays of such passes
        norm, step = self.model.gpu.rms_norm, engine.step

        def noted_norm(x: torch.Tensor, *given: Any, **named: Any) -> Any:
            self.tokens = len(x)
            return norm(x, *given, **named)

        def noted_step(rows: Any, ids: Any) -> Any:
            self.rows = tuple(rows)
            self.steps[self.rows] += 1
            return step(rows, ids)

        patch.setattr(self.model.gpu, "rms_norm", noted_norm)
        patch.setattr(engine, "step", noted_step)

    def at(self, place: Place, when: Callable[[], bool]) -> None:
        """From the call of that number on, of those in passes that are meant."""
        holder, name, number = place[0](self.model), *place[1:]
        verb, calls = getattr(holder, name), 0

        def call(*given: Any, **named: Any) -> Any:
            nonlocal calls
            arrays = [one for one in given if isinstance(one, torch.Tensor)][:1]
            self.tokens = len(arrays[0]) if arrays else self.tokens
            if when():
                calls += 1
                self.seen += map(weakref.ref, arrays)
                if calls >= number:
                    self.raised += 1
                    raise torch.OutOfMemoryError(FULL)
            return verb(*given, **named)

        self.patch.setattr(holder, name, call)


class Asked:
    """A request, and what its listener was told."""

    def __init__(self, scheduler: Scheduler, ids: list[int], tokens: int):
        self.events: list[Event] = []
        self._begun, self._ended = threading.Event(), threading.Event()
        sampling = Sampling(temperature=0.0, max_tokens=tokens)
        scheduler.submit(Request(ids, sampling, frozenset(), self._hear, logprobs=1))

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Generated):
            self._begun.set()
        if isinstance(event, Ended):
            self._ended.set()

    def begun(self) -> "Asked":
        assert self._begun.wait(PATIENCE)
        return self

    def end(self) -> Ended:
        assert self._ended.wait(PATIENCE) and isinstance(self.events[-1], Ended)
        return self.events[-1]

    def failure(self) -> str:
        ended = self.end()
        assert ended.reason == "failed" and isinstance(ended.error, ResourceError), ended
        return str(ended.error)

    def so_far(self) -> list[Generated]:
        """With the logarithms of their probabilities, to the bit."""
        return [event for event in self.events if isinstance(event, Generated)]

    def answer(self) -> list[Generated]:
        assert self.end().reason == "length", self.end()
        return self.so_far()


@pytest.fixture(scope="module", params=[False, True], ids=["calls", "flags"])
def engines(request, model_file, tmp_path_factory) -> Iterator[list[Engine]]:
    """Two of the same: all but some experts on the GPU; passes of few tokens meet by calls, or by flags."""
    with pytest.MonkeyPatch.context() as patch:
        plain_gpu.pretend(patch)
        patch.setattr("hetero.gpu_machine.DEVICE_FILES", ("/dev/nvidiactl of no test",))
        patch.setattr(hetero.hybrid, "HALVES_FROM", 128)
        open_bells = Doorbells.open
        patch.setattr(Doorbells, "open", lambda bells: open_bells(bells, TWINS if request.param else None))
        path, target = model_file("tiny", "F16"), tmp_path_factory.mktemp("plan") / "plan.json"
        shape: dict[str, Any] = {"context": 512, "sequences": 3, "threads": 1}
        plan = plain_gpu.placed(path, target, RunConfig(**shape, device="cpu"), dense, {1: (0, 3, 4, 5), 2: (7,)})
        yield [hetero.load(path, RunConfig(**shape, plan=plan))[0] for _ in range(2)]


@pytest.fixture(scope="module")
def schedulers(engines: list[Engine]) -> Iterator[list[Scheduler]]:
    """Of the engine in which memory runs out, and of the one in which it does not."""
    made = [Scheduler(engine, max_token_gap=0.05) for engine in engines]
    yield made
    for scheduler in made:
        scheduler.close()


@pytest.fixture
def exhausted(schedulers, engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> Exhausted:
    return Exhausted(engines[0], monkeypatch)


def asked(length: int, place: str) -> list[int]:
    """Of no two cases the same: nothing of it is found in the cache."""
    return [*prompt(length, seed=crc32(f"{length} {place}".encode()))]


@pytest.mark.parametrize("place", IN_PROMPTS)
def test_a_prompt_that_does_not_fit(place: str, schedulers: list[Scheduler], exhausted: Exhausted) -> None:
    """It fails. The answer beside it goes on, and the same prompt may be read later."""
    scheduler, other = schedulers
    short, long = asked(30, place), asked(300, place)
    running = Asked(scheduler, short, 25).begun()
    with pytest.MonkeyPatch.context() as patch:
        exhausted.patch = patch
        exhausted.at(IN_PROMPTS[place], lambda: exhausted.tokens > 8)
        failure = Asked(scheduler, long, 3).failure()
        assert "memory ran out while the prompt was read; the GPU's memory ran out in a pass: CUDA" in failure
    assert exhausted.raised == 1 and not scheduler.failed
    expected = Asked(other, short, 25).answer(), Asked(other, long, 3).answer()
    assert (running.answer(), Asked(scheduler, long, 3).answer()) == expected
    assert scheduler.snapshot().pages_held == 0


@pytest.mark.parametrize("place", IN_STEPS)
def test_a_step_that_does_not_fit(place: str, schedulers: list[Scheduler], exhausted: Exhausted) -> None:
    """Of several: each goes on alone. What does not fit even so ends, the second answer behind its third token."""
    scheduler, other = schedulers
    questions = [asked(length, place) for length in (20, 50, 5)]
    with pytest.MonkeyPatch.context() as patch:
        exhausted.patch = patch

        def full() -> bool:
            step = exhausted.rows
            return exhausted.tokens == len(step) and (len(step) > 1 or (step == (1,) and exhausted.steps[step] > 3))

        exhausted.at(IN_STEPS[place], full)
        first, failed, last = (Asked(scheduler, ids, 12).begun() for ids in questions)
        assert "memory ran out" in failed.failure()
        answers = [first.answer(), last.answer()]
    assert exhausted.raised > 1 and len(failed.so_far()) == 3 and not scheduler.failed
    expected = [Asked(other, ids, 12).answer() for ids in questions]
    assert answers == expected[::2] and failed.so_far() == expected[1][:3]
    assert Asked(scheduler, questions[1], 12).answer() == expected[1]
    assert scheduler.snapshot().pages_held == 0


@pytest.mark.parametrize("place", [IN_PROMPTS["behind a submit"], IN_STEPS["the head"]])
def test_nothing_of_the_pass_lives_on(place: Place, engines: list[Engine], exhausted: Exhausted) -> None:
    """Whoever handles the error may compute at once; an engine without a scheduler tells it."""
    engine, ids = engines[0], asked(22, str(place[1]))
    model: Any = engine.model
    with pytest.MonkeyPatch.context() as patch:
        exhausted.patch = patch
        exhausted.at(place, lambda: True)
        with pytest.raises(GpuMemoryError, match=SAID) as caught:
            next(engine.generate(ids))
    assert isinstance(caught.value, MemoryError) and isinstance(caught.value, ResourceError)
    assert exhausted.seen and not any(array() is not None for array in exhausted.seen)
    assert all(meeting._collect is None for meeting in model.doorbells.meetings)
    assert all(getattr(block.feed_forward, "_here", None) is None for block in model.blocks)
    greedy = Sampling(temperature=0.0, max_tokens=3)
    assert len(list(engine.generate(ids, greedy))) == 3
    engine.cache.truncate(0, 0)  # as the scheduler left it
