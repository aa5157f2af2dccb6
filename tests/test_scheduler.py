"""What a listener hears, whatever happens: the scheduler over a model that recites."""

import threading
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest

import hetero.engine
from cpu_kernels import Pool
from hetero.errors import ContextExceeded, Draining, FileError, HeteroError, KernelError, QueueFull, RequestError
from hetero.request import Ended, Event, Generated, Read, Request, Started
from hetero.sampler import Sampling
from hetero.scheduler import Scheduler, Ticket
from placement.budget import PASSES
from tests.reciting_model import PATIENCE, PIECES, VOCABULARY, Reciting, reciting_engine

CONTEXT, CHUNK, ROWS = 1024, 256, 2
Make = Callable[..., Scheduler]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1) as pool:
        yield pool


@pytest.fixture
def model() -> Reciting:
    return Reciting()


@pytest.fixture
def make(model: Reciting, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """make(rows=2, queue=64) -> a scheduler of the model; steps of its rehearsal are not counted."""
    monkeypatch.setattr(hetero.engine, "CHUNK", CHUNK)
    monkeypatch.setattr(pool, "close", lambda: None)
    made = []

    def scheduler(rows: int = ROWS, **settings: Any) -> Scheduler:
        made.append(Scheduler(reciting_engine(model, pool, rows, CONTEXT), **settings))
        model.steps.clear()
        return made[-1]

    yield scheduler
    model.go_on()
    for one in made:
        one.close()


class Heard:
    """A listener."""

    def __init__(self, fails_at: type[Event] | None = None) -> None:
        self.events: list[Event] = []
        self.fails_at = fails_at
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not self.ended.is_set(), "nothing comes after the end"
        self.events.append(event)
        if isinstance(event, Ended):
            self.ended.set()
        if type(event) is self.fails_at:
            raise ValueError("a listener's own mistake")

    @property
    def ids(self) -> list[int]:
        return [event.id for event in self.events if isinstance(event, Generated)]

    @property
    def end(self) -> Ended:
        assert self.ended.wait(PATIENCE), "no end"
        event = self.events[-1]
        assert isinstance(event, Ended)
        return event

    def check_order(self) -> None:
        order = {Started: 0, Read: 1, Generated: 2, Ended: 3}
        kinds = [order[type(event)] for event in self.events]
        assert kinds == sorted(kinds) and kinds.count(3) == 1 and kinds.count(0) <= 1
        reads = [event for event in self.events if isinstance(event, Read)]
        assert all(before.done < after.done for before, after in pairwise(reads))


def ask(
    scheduler: Scheduler, heard: Heard, ids: list[int], stop: tuple[int, ...] = (), most: int | None = 4, **how: Any
) -> Ticket:
    sampling = how.pop("sampling", None) or Sampling(temperature=0.0, max_tokens=most)
    return scheduler.submit(Request(ids, sampling, frozenset(stop), heard, **how))


def prompt(tokens: int, first: int = 0) -> list[int]:
    return [(first + n) % VOCABULARY for n in range(tokens)]


def noise(tokens: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, tokens).tolist()


def test_a_request_is_read_answered_and_ended(make: Make, model: Reciting) -> None:
    heard = Heard()
    ask(make(), heard, prompt(2 * CHUNK + 10), most=3)
    telemetry = heard.end.telemetry
    total = 2 * CHUNK + 10
    reads = [Read(CHUNK, total), Read(2 * CHUNK, total), Read(total, total)]
    first = total % VOCABULARY
    generated = [Generated((first + n) % VOCABULARY) for n in range(3)]
    assert heard.events == [Started(0), *reads, *generated, Ended("length", None, telemetry)]
    assert (telemetry.prompt_tokens, telemetry.cached_tokens, telemetry.generated_tokens) == (total, 0, 3)
    assert model.reads == [(0, 0, CHUNK), (0, CHUNK, CHUNK), (0, 2 * CHUNK, 9)]
    assert telemetry.prompt_seconds > 0 and telemetry.longest_gap_seconds <= telemetry.generation_seconds


def test_stop_ids_are_not_told(make: Make) -> None:
    heard = Heard()
    ask(make(), heard, [1, 2, 3], stop=(6, 9), most=None)
    assert heard.end.reason == "stop" and heard.ids == [4, 5]


def test_a_stop_id_may_come_first(make: Make) -> None:
    heard = Heard()
    ask(make(), heard, [3], stop=(4,))
    assert heard.end.reason == "stop" and heard.ids == [] and heard.end.telemetry.prompt_seconds > 0
    assert heard.events[0] == Started(0)


@pytest.mark.parametrize("most", [None, 8, 32_000])
def test_what_may_go_on_ends_where_the_context_is_full(most: int | None, make: Make) -> None:
    heard = Heard()
    ask(make(), heard, prompt(CONTEXT - 7), most=most)
    assert heard.end.reason == "length" and len(heard.ids) == 7


@pytest.mark.parametrize(("size", "most"), [(CONTEXT, None), (CONTEXT, 1), (CONTEXT + 500, None)])
def test_what_exceeds_the_context_is_refused_at_once(size: int, most: int | None, make: Make) -> None:
    with pytest.raises(ContextExceeded, match=f"the prompt has {size:,} tokens.*holds 1,024") as caught:
        ask(make(), Heard(), prompt(size), most=most)
    assert (caught.value.prompt, caught.value.context) == (size, CONTEXT)


@pytest.mark.parametrize(
    ("ids", "how", "said"),
    [
        ([], {}, "an empty prompt"),
        ([1, VOCABULARY], {}, "token id 16"),
        ([1], {"sampling": Sampling(logit_bias={VOCABULARY: 1.0})}, "logit_bias names token 16"),
    ],
)
def test_what_is_impossible_is_refused_at_once(ids: list[int], how: dict[str, Any], said: str, make: Make) -> None:
    scheduler = make()
    with pytest.raises(RequestError, match=said):
        ask(scheduler, Heard(), ids, **how)
    assert scheduler.join(0)


def test_answers_take_their_steps_together(make: Make, model: Reciting) -> None:
    scheduler, both = make(), [Heard(), Heard()]
    model.hold()
    for first, heard in enumerate(both):
        ask(scheduler, heard, [5 * first])
        if not first:
            model.arrived()
    model.go_on()
    assert [heard.end.reason for heard in both] == ["length"] * 2
    assert model.steps == [[0], [0, 1], [0, 1], [0, 1], [1]]
    assert [heard.ids for heard in both] == [[1, 2, 3, 4], [6, 7, 8, 9]]


def test_places_are_given_in_the_order_of_submission(make: Make, model: Reciting) -> None:
    scheduler, order, lock = make(queue=1000), list[int](), threading.Lock()
    heards: list[Heard] = []

    def listener(heard: Heard, number: list[int]) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            if isinstance(event, Started):
                order.append(number[0])
            heard(event)

        return hear

    def many() -> None:
        for _ in range(25):
            heard, number = Heard(), list[int]()
            with lock:  # the number is known before the first event
                request = Request([1], Sampling(temperature=0.0, max_tokens=2), frozenset(), listener(heard, number))
                number.append(scheduler.submit(request).id)
                heards.append(heard)

    model.hold()
    ask(scheduler, Heard(), [1])
    model.arrived()
    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model.go_on()
    assert scheduler.join(PATIENCE)
    assert order == sorted(order) and len(order) == 200
    for heard in heards:
        heard.check_order()
        assert heard.end.reason == "length"


def test_when_to_come_back_follows_from_what_was_served(make: Make, model: Reciting, monkeypatch) -> None:
    """At first it is not known; the first request that ends says it."""
    moments = count()
    monkeypatch.setattr("hetero.batching.perf_counter", lambda: next(moments) / 1000)
    scheduler, told = make(rows=1, queue=1), []
    for _ in range(2):
        heard = [Heard(), Heard()]
        model.hold()
        ask(scheduler, heard[0], [1])
        model.arrived()
        ask(scheduler, heard[1], [1])
        with pytest.raises(QueueFull, match="1 request is waiting; ") as caught:
            ask(scheduler, Heard(), [1])
        told.append(caught.value.retry_after)
        model.go_on()
        assert [one.end.reason for one in heard] == ["length", "length"]
    assert told == [10, 1]


def test_a_full_queue_refuses_but_what_belongs_to_an_accepted_request(make: Make, model: Reciting) -> None:
    scheduler, later = make(rows=1, queue=2), Heard()
    model.hold()
    ask(scheduler, Heard(), [1])
    model.arrived()
    for _ in range(2):
        ask(scheduler, Heard(), [1])
    with pytest.raises(QueueFull, match="2 requests are waiting") as caught:
        ask(scheduler, Heard(), [1])
    assert 1 <= caught.value.retry_after <= 600
    ask(scheduler, later, [1], later=True)
    snapshot = scheduler.snapshot()
    assert (snapshot.running, snapshot.waiting, snapshot.refused) == (1, 3, 1)
    model.go_on()
    assert later.end.reason == "length"
    ask(scheduler, Heard(), [1])


def test_cancelled_while_it_waits(make: Make, model: Reciting) -> None:
    scheduler, waiting = make(rows=1), Heard()
    model.hold()
    first = ask(scheduler, Heard(), [1])
    model.arrived()
    ticket = ask(scheduler, waiting, [2])
    ticket.cancel()
    model.go_on()
    assert waiting.end.reason == "cancelled" and len(waiting.events) == 1
    assert waiting.end.telemetry.queued_seconds > 0
    first.cancel()


def test_cancelled_in_the_middle_of_a_pass_it_keeps_what_was_read(make: Make, model: Reciting) -> None:
    scheduler, heard, again = make(), Heard(), Heard()
    ids = noise(3 * CHUNK, 1)
    model.hold()
    ticket = ask(scheduler, heard, ids)
    for _ in range(PIECES + 1):  # the first chunk, and a piece of the second
        model.arrived()
        model.let(1)
    model.arrived()
    ticket.cancel()
    model.go_on()
    assert heard.end.reason == "cancelled" and heard.events[-2] == Read(CHUNK, 3 * CHUNK)
    assert model.pieces == PIECES + 2, "the piece at hand was the last one"
    ask(scheduler, again, ids)
    assert again.end.reason == "length" and again.events[0] == Started(CHUNK)
    assert scheduler.snapshot().pages_held == 0


def test_cancelled_while_it_is_answered_it_ends_within_a_step(make: Make, model: Reciting) -> None:
    scheduler, heard, other = make(), Heard(), Heard()
    ticket: list[Ticket] = []
    model.on_step = lambda batch: ticket[0].cancel() if len(heard.ids) == 3 else None
    model.hold()
    ticket.append(ask(scheduler, heard, [1], most=500))
    ask(scheduler, other, [2], most=10)
    model.go_on()
    assert heard.end.reason == "cancelled" and len(heard.ids) == 4
    assert other.end.reason == "length" and len(other.ids) == 10
    ticket[0].cancel()  # once more does nothing


def test_drained_it_finishes_what_it_has(make: Make, model: Reciting) -> None:
    scheduler, heards = make(rows=1), [Heard(), Heard()]
    model.hold()
    for heard in heards:
        ask(scheduler, heard, [1])
    scheduler.drain()
    with pytest.raises(Draining):
        ask(scheduler, Heard(), [1])
    assert not scheduler.join(0) and scheduler.snapshot().draining
    model.go_on()
    assert scheduler.join(PATIENCE)
    assert [heard.end.reason for heard in heards] == ["length"] * 2


def test_closed_it_cancels_what_runs_is_read_and_waits(make: Make, model: Reciting) -> None:
    scheduler, heards = make(), [Heard() for _ in range(4)]
    model.hold()
    for heard, size in zip(heards, (1, 500, 20, 20), strict=True):
        ask(scheduler, heard, noise(size, size), most=200)
    model.arrived()
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while not scheduler._closing:
        pass
    model.go_on()
    closing.join(PATIENCE)
    assert not closing.is_alive() and model.closed
    for heard in heards:
        assert heard.end.reason == "cancelled"
        heard.check_order()
    with pytest.raises(Draining):
        ask(scheduler, Heard(), [1])
    assert scheduler.snapshot().running == scheduler.snapshot().waiting == 0


@pytest.mark.parametrize("kind", [Started, Read, Generated, Ended])
def test_a_listeners_mistake_ends_its_own_request(kind: type[Event], make: Make, model: Reciting) -> None:
    scheduler, wrong, other = make(), Heard(fails_at=kind), Heard()
    model.hold()
    ask(scheduler, wrong, noise(70, 1), most=5)
    ask(scheduler, other, noise(90, 2), most=8)
    model.go_on()
    assert other.end.reason == "length" and len(other.ids) == 8
    if kind is not Ended:
        assert wrong.end.reason == "failed" and str(wrong.end.error).startswith("ValueError in a request")
    wrong.check_order()
    assert scheduler.join(PATIENCE) and scheduler.snapshot().pages_held == 0


class Only:
    """Allows these tokens, one after the other."""

    def __init__(self, *ids: int, fails: bool = False):
        self.ids, self.fails, self.seen = list(ids), fails, list[int]()

    @property
    def ended(self) -> bool:
        return not self.ids

    def mask(self) -> np.ndarray | None:
        if self.fails:
            raise KeyError("grammar")
        mask = np.zeros(1, np.uint32)
        mask[0] = 0 if self.ids[0] < 0 else 1 << self.ids[0]
        return mask

    def accept(self, id: int) -> None:
        assert id == self.ids.pop(0)
        self.seen.append(id)


def test_a_constraint_is_kept_to_and_ends_the_answer(make: Make) -> None:
    heard, constraint = Heard(), Only(9, 3, 3)
    ask(make(), heard, [1, 2], most=10, constraint=constraint)
    assert heard.end.reason == "stop" and heard.ids == [9, 3, 3] == constraint.seen


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"constraint": Only(9, fails=True)}, "KeyError in a request"),
        ({"constraint": Only(9, -1)}, "no token is allowed here"),
        (
            {"constraint": Only(9), "sampling": Sampling(temperature=0.0, logit_bias={9: -np.inf})},
            "no token is allowed here",
        ),
    ],
)
def test_a_constraints_mistake_ends_its_own_request(
    how: dict[str, Any], said: str, make: Make, model: Reciting
) -> None:
    scheduler, wrong, other = make(), Heard(), Heard()
    model.hold()
    ask(scheduler, wrong, [1], **how)
    ask(scheduler, other, [2], most=6)
    model.go_on()
    assert wrong.end.reason == "failed" and said in str(wrong.end.error)
    assert other.end.reason == "length"


def test_logits_that_are_no_numbers_end_their_own_request(make: Make, model: Reciting) -> None:
    scheduler, wrong, other = make(), Heard(), Heard()
    right = model.forward

    def forward(batch: Any, layers: Any) -> np.ndarray:
        logits = right(batch, layers)
        logits[batch.ids == 11] = np.nan
        return logits

    model.forward = forward  # type: ignore[method-assign]
    model.hold()
    ask(scheduler, wrong, [9], most=10)
    ask(scheduler, other, [1], most=6)
    model.go_on()
    assert wrong.end.reason == "failed" and wrong.ids == [10, 11] and isinstance(wrong.end.error, KernelError)
    assert other.end.reason == "length"


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (FileError("the file was cut"), FileError, "the file was cut"),
        (ZeroDivisionError("oh"), KernelError, "ZeroDivisionError: oh; nothing can be computed"),
    ],
)
@pytest.mark.parametrize("where", ["on_step", "on_piece"])
def test_a_failure_of_the_engine_ends_all(
    where: str, failure: Exception, kind: type[HeteroError], said: str, make: Make, model: Reciting
) -> None:
    scheduler, heards = make(), [Heard() for _ in range(4)]

    def fail(batch: Any) -> None:
        raise failure

    model.hold()
    for size, heard in enumerate(heards):
        ask(scheduler, heard, noise(1 + 300 * size, size), most=100)
    setattr(model, where, fail)
    model.go_on()
    for heard in heards:
        assert heard.end.reason == "failed" and isinstance(heard.end.error, kind) and said in str(heard.end.error)
        heard.check_order()
    assert scheduler.join(PATIENCE)
    with pytest.raises(kind, match=said):
        ask(scheduler, Heard(), [1])
    scheduler.close()
    assert model.closed


def test_a_failure_at_the_start_is_raised(make: Make, model: Reciting) -> None:
    def fail(batch: Any) -> None:
        raise FileError("the file was cut")

    model.on_step = fail
    with pytest.raises(FileError, match="was cut"):
        make()


def test_memory_that_runs_out_in_a_prompt_ends_its_own_request(make: Make, model: Reciting) -> None:
    scheduler, wrong, other = make(), Heard(), Heard()

    def fail(batch: Any) -> None:
        if len(batch.ids) > 100:
            raise MemoryError

    model.on_piece = fail
    model.hold()
    ask(scheduler, wrong, noise(200, 1))
    ask(scheduler, other, noise(50, 2))
    model.go_on()
    assert wrong.end.reason == "failed" and "memory ran out" in str(wrong.end.error)
    assert other.end.reason == "length"
    assert scheduler.snapshot().pages_held == 0


def test_logprobs_are_those_of_the_model(make: Make) -> None:
    heard = Heard()
    biased = Sampling(temperature=0.0, max_tokens=2, logit_bias={7: 5.0})
    ask(make(), heard, [1], sampling=biased, logprobs=3)
    assert heard.end.reason == "length" and heard.ids == [7, 7]
    generated = heard.events[-2]
    assert isinstance(generated, Generated)
    total = np.log(np.e + VOCABULARY - 1)
    assert generated.logprob == pytest.approx(1 - total if generated.id == 8 else -total)
    assert [id for id, _ in generated.top] == [8, 0, 1] and generated.top[0][1] == pytest.approx(1 - total)


def test_logprobs_of_none_but_the_chosen(make: Make) -> None:
    heard = Heard()
    ask(make(), heard, [1], most=1, logprobs=0)
    assert heard.end.reason == "length"
    assert heard.events[-2] == Generated(2, pytest.approx(1 - np.log(np.e + VOCABULARY - 1)), ())


def test_a_prompt_that_another_one_begins_with_is_read_once(make: Make, model: Reciting) -> None:
    scheduler, heards = make(rows=4), [Heard() for _ in range(4)]
    system = noise(2 * CHUNK, 1)
    model.hold()
    for seed, heard in enumerate(heards):
        ask(scheduler, heard, system + noise(40, 10 + seed))
    model.go_on()
    for heard in heards:
        assert heard.end.reason == "length"
        heard.check_order()
    assert sum(tokens for _, _, tokens in model.reads) == 2 * CHUNK + 4 * 39
    telemetry = [heard.end.telemetry for heard in heards]
    assert [one.cached_tokens for one in telemetry] == [0, *[2 * CHUNK] * 3]
    assert [one.prompt_tokens for one in telemetry] == [2 * CHUNK + 40, 40, 40, 40]
    snapshot = scheduler.snapshot()
    assert (snapshot.prompt_tokens, snapshot.cached_tokens) == (2 * CHUNK + 4 * 39, 3 * 2 * CHUNK)


def test_the_reader_that_others_wait_for_may_be_cancelled(make: Make, model: Reciting) -> None:
    scheduler, first, second = make(), Heard(), Heard()
    ids = noise(3 * CHUNK, 1)
    model.hold()
    ticket = ask(scheduler, first, ids)
    model.arrived()
    ask(scheduler, second, [*ids, 1])
    model.let(1)
    model.arrived()
    ticket.cancel()
    model.go_on()
    assert first.end.reason == "cancelled" and second.end.reason == "length"
    second.check_order()


def test_a_second_turn_reads_only_what_is_new(make: Make, model: Reciting) -> None:
    scheduler, first, second = make(), Heard(), Heard()
    ids = noise(300, 1)
    ask(scheduler, first, ids, most=50)
    assert first.end.reason == "length"
    model.reads.clear()
    ask(scheduler, second, [*ids, *first.ids, *noise(30, 2)])
    assert second.end.reason == "length"
    assert second.events[0] == Started(349), "the last token's values have never been computed"
    assert [tokens for _, _, tokens in model.reads] == [30]


def test_a_short_prompt_does_not_wait_for_a_long_one(make: Make, model: Reciting) -> None:
    scheduler, long, short = make(), Heard(), Heard()
    model.hold()
    ask(scheduler, long, noise(1000, 1))
    model.arrived()
    ask(scheduler, short, noise(20, 2), most=1)
    model.go_on()
    assert long.end.reason == "length" and short.end.reason == "length"
    assert model.reads[0][2] == CHUNK or model.reads[0][2] == 19
    assert [tokens for _, _, tokens in model.reads].index(19) <= 2, "after a chunk or two of the long one"


def test_an_answer_goes_on_while_a_prompt_is_read(make: Make, model: Reciting) -> None:
    scheduler, running, long = make(max_token_gap=1e-9), Heard(), Heard()
    model.hold()
    ask(scheduler, running, [1], most=200)
    model.arrived()
    ask(scheduler, long, noise(1000, 1))
    model.go_on()
    assert running.end.reason == "length" and long.end.reason == "length"
    assert model.pieces == 4 * PIECES


def test_a_snapshot_says_what_happens(make: Make, model: Reciting) -> None:
    scheduler, running, reading, waiting = make(), Heard(), Heard(), Heard()
    model.hold()
    ticket = ask(scheduler, running, [1], most=100)
    model.arrived()
    other = ask(scheduler, reading, noise(600, 1))
    ask(scheduler, waiting, [3])
    for _ in range(3):
        model.let(1)
        model.arrived()
    snapshot = scheduler.snapshot()
    assert [(one.id, one.phase, one.prompt) for one in snapshot.sequences] == [
        (ticket.id, "generating", 1),
        (other.id, "reading", 600),
    ]
    assert snapshot.waiting == 1 and snapshot.tokens_per_second > 0 and snapshot.max_token_gap == 0.5
    assert snapshot.pages == 2 * CONTEXT // 64 == snapshot.pages_held + snapshot.pages_cached + snapshot.pages_free
    model.go_on()
    assert scheduler.join(PATIENCE)
    snapshot = scheduler.snapshot()
    assert snapshot.ended == {"length": 3} and snapshot.generated_tokens == 100 + 4 + 4
    assert snapshot.pages_held == 0 and snapshot.pages_cached == 2 + 10 + 1


@pytest.mark.parametrize("rounds", [20, pytest.param(2000, marks=pytest.mark.soak)])
def test_random_traffic(rounds: int, make: Make, model: Reciting) -> None:
    """Many threads that submit and cancel: everybody hears everything once, in order, and nothing leaks."""
    scheduler, heards = make(rows=3, queue=5), list[Heard]()

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(rounds):
            heard = Heard(fails_at=Generated if rng.random() < 0.1 else None)
            try:
                size = int(rng.integers(1, 700))
                ticket = ask(scheduler, heard, noise(size, int(rng.integers(3))), most=int(rng.integers(1, 20)))
            except QueueFull:
                continue
            heards.append(heard)
            if rng.random() < 0.3:
                ticket.cancel()
            if rng.random() < 0.8:
                heard.ended.wait(PATIENCE)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert scheduler.join(PATIENCE)
    for heard in heards:
        heard.check_order()
    snapshot = scheduler.snapshot()
    assert sum(snapshot.ended.values()) == len(heards) and snapshot.pages_held == snapshot.running == 0
    assert model.most_under_way == PASSES, "no more than the plan has memory for"
