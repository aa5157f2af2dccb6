"""Answers to several requests at once: each, to the bit, what it is alone after the same prefix."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pytest

import hetero.engine
from hetero import RunConfig, Sampling, demo, load
from hetero.continuation import Continuation
from hetero.engine import Engine
from hetero.request import Ended, Event, Generated, Request
from hetero.scheduler import Scheduler, Ticket

SLOTS, CHUNK, CONTEXT = 4, 128, 640
BRIEF, LONG = 14, 400  # requests


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine, _ = load(demo.path(), RunConfig(context=CONTEXT, sequences=SLOTS, threads=2, device="cpu"))
    yield engine
    engine.close()


@pytest.fixture
def scheduler(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scheduler]:
    """Of an engine that stays; prompts are cut into many chunks."""
    monkeypatch.setattr(hetero.engine, "CHUNK", CHUNK)
    monkeypatch.setattr(engine, "close", lambda: None)
    scheduler = Scheduler(engine, max_token_gap=0.02, queue=LONG)
    yield scheduler
    scheduler.close()


@dataclass
class Heard:
    """`expanded`: of the prompt's tokens but the last, how each was computed."""

    ids: list[int]
    events: list[Event] = field(default_factory=list)
    expanded: list[bool] = field(default_factory=list)
    number: int = 0

    @property
    def answer(self) -> list[Generated]:
        return [event for event in self.events if isinstance(event, Generated)]


def ask(scheduler: Scheduler, heard: Heard, most: int) -> Ticket:
    work: Any = scheduler._work
    submitted = threading.Event()

    def listener(event: Event) -> None:
        heard.events.append(event)
        if isinstance(event, Generated) and not heard.expanded:
            submitted.wait()
            row = next(one.row for one in work.admitted if one.number == heard.number)
            heard.expanded = work.cache.expanded(row)[: len(heard.ids) - 1].tolist()

    greedy = Sampling(temperature=0.0, max_tokens=most)
    ticket = scheduler.submit(Request(heard.ids, greedy, frozenset(), listener, logprobs=1))
    heard.number = ticket.id
    submitted.set()
    return ticket


def alone(engine: Engine, heard: Heard) -> list[Generated]:
    """The same answer without a scheduler: the prompt in passes of tokens that are computed in the same way."""
    model, most = engine.model, len(heard.answer)
    right = model.absorbed_limit
    engine.forget()
    try:
        at = 0
        for expanded, run in groupby(heard.expanded):
            size = len(list(run))
            model.absorbed_limit = 0 if expanded else CONTEXT
            engine.forward(heard.ids[at : at + size], [])
            at += size
        model.absorbed_limit = right
        going = Continuation(heard.ids, Sampling(temperature=0.0), engine.config.vocab_size, most, frozenset(), None, 1)
        found, last = [], heard.ids[-1]
        for _ in range(most):
            chosen = going.choose(engine.scores([last])[0])
            assert chosen is not None
            last = chosen.id
            found.append(Generated(chosen.id, chosen.logprob, chosen.top))
        return found
    finally:
        model.absorbed_limit = right
        engine.forget()


def requests(seed: int, count: int, vocabulary: int) -> list[Heard]:
    """Prompts that begin alike, for some tokens or for many, and some that go on where another ended."""
    rng = np.random.default_rng(seed)
    systems = [rng.integers(0, vocabulary, size).tolist() for size in (70, 200, 330)]
    made = []
    for _ in range(count):
        system = systems[rng.integers(len(systems))][: int(rng.choice([40, 64, 130, 330]))]
        own = rng.integers(0, vocabulary, int(rng.integers(1, 120))).tolist()
        made.append(Heard(system + own))
    return made


def run(scheduler: Scheduler, asked: list[Heard], seed: int) -> None:
    """Some are cancelled on the way, some ask further when they have their answer."""
    rng = np.random.default_rng(seed)
    for heard in asked:
        ticket = ask(scheduler, heard, int(rng.integers(1, 30)))
        if rng.random() < 0.2:
            threading.Timer(float(rng.random()) / 50, ticket.cancel).start()
        if rng.random() < 0.3:
            scheduler.join(float(rng.random()) / 10)
    assert scheduler.join(120)


def check(engine: Engine, asked: list[Heard]) -> int:
    """Returns how many finished."""
    finished = 0
    for heard in asked:
        ended = heard.events[-1]
        assert isinstance(ended, Ended) and ended.reason in ("length", "cancelled"), ended
        finished += ended.reason == "length"
        if heard.answer:
            assert heard.answer == alone(engine, heard)
    return finished


def test_a_step_of_several_sequences_is_a_step_of_each(engine: Engine) -> None:
    texts = [request.ids for request in requests(3, SLOTS, engine.config.vocab_size)]
    logits = []
    for together in (True, False):
        for row, ids in enumerate(texts):
            with engine.batch([(row, ids)], []) as batch:
                engine.model.forward(batch, engine.cache.layers)
        steps = []
        for id in range(20):
            if together:
                steps.append(engine.step(range(SLOTS), [id] * SLOTS))
            else:
                steps.append(np.concatenate([engine.step([row], [id]) for row in range(SLOTS)]))
        logits.append(steps)
        for row in range(SLOTS):
            engine.cache.release(row)
    np.testing.assert_array_equal(*logits)


def test_answers_do_not_depend_on_what_runs_beside_them(scheduler: Scheduler, engine: Engine) -> None:
    asked = requests(1, BRIEF, engine.config.vocab_size)
    run(scheduler, asked, 2)
    again = [Heard([*heard.ids, *(one.id for one in heard.answer), 5, 6, 7]) for heard in asked if heard.answer]
    run(scheduler, again, 3)
    snapshot = scheduler.snapshot()
    scheduler.close()
    assert check(engine, asked + again) > len(asked + again) / 2
    assert any(any(heard.expanded) and not all(heard.expanded) for heard in again), "both ways to compute were there"
    assert snapshot.pages_held == 0 and snapshot.cached_tokens > 0


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_many_answers_do_not_depend_on_what_runs_beside_them(seed: int, scheduler: Scheduler, engine: Engine) -> None:
    asked = requests(seed, LONG, engine.config.vocab_size)
    run(scheduler, asked, seed)
    scheduler.close()
    assert check(engine, asked) > len(asked) / 2
