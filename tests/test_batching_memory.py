"""Memory that runs out in a step: who ends, and who goes on."""

from collections.abc import Iterator

import pytest

from cpu_kernels import Pool
from hetero.errors import ResourceError
from hetero.model import Batch
from hetero.request import Ended, Event, Generated, Request
from hetero.sampler import Sampling
from hetero.scheduler import Scheduler
from tests.reciting_model import PATIENCE, Reciting, reciting_engine

GREEDY = Sampling(temperature=0.0, max_tokens=5)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1) as pool:
        yield pool


@pytest.fixture
def model() -> Reciting:
    return Reciting()


@pytest.fixture
def scheduler(model: Reciting, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scheduler]:
    monkeypatch.setattr(pool, "close", lambda: None)
    made = Scheduler(reciting_engine(model, pool, rows=3, context=256))
    model.steps.clear()
    yield made
    model.go_on()
    made.close()


def answered(scheduler: Scheduler, model: Reciting) -> list[list[Event]]:
    """What the listeners of three requests heard, whose prompts are the tokens 1, 5 and 9."""
    heard: list[list[Event]] = [[] for _ in range(3)]
    model.hold()
    for events, last in zip(heard, (1, 5, 9), strict=True):
        scheduler.submit(Request([last], GREEDY, frozenset(), events.append))
    model.go_on()
    assert scheduler.join(PATIENCE)
    return heard


def ids(events: list[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, Generated)]


def end(events: list[Event]) -> Ended:
    assert isinstance(events[-1], Ended)
    return events[-1]


def test_a_step_that_several_do_not_fit_into_is_done_one_by_one(scheduler: Scheduler, model: Reciting) -> None:
    def fail(batch: Batch) -> None:
        if len(batch.ids) > 1:
            raise MemoryError

    model.on_step = fail
    heard = answered(scheduler, model)
    assert [ids(events) for events in heard] == [[at + n for n in range(1, 6)] for at in (1, 5, 9)]
    assert all(end(events).reason == "length" for events in heard)
    assert {len(step) for step in model.steps} == {1}


def test_what_fails_alone_is_its_own_failure(scheduler: Scheduler, model: Reciting) -> None:
    def fail(batch: Batch) -> None:
        if 7 in batch.ids:
            raise MemoryError

    model.on_step = fail
    first, failed, last = answered(scheduler, model)
    assert ids(first) == [2, 3, 4, 5, 6] and ids(last) == [10, 11, 12, 13, 14]
    assert ids(failed) == [6, 7] and end(failed).reason == "failed"
    assert isinstance(end(failed).error, ResourceError) and "memory ran out" in str(end(failed).error)
    snapshot = scheduler.snapshot()
    assert snapshot.pages_held == 0 and not scheduler.failed
    model.on_step = lambda batch: None
    assert [len(ids(events)) for events in answered(scheduler, model)] == [5, 5, 5]
