"""The sequences that have their place: steps for all answers together, and prompts read in pieces between them.

How time is divided says hetero.token_gap, which prompt comes next hetero.turns. Before each chunk a prompt looks again
for what others have read meanwhile. An answer does not depend on what runs beside it: each row of a step is computed as
it would be alone, and how a prompt was cut is noted with its tokens (`LatentCache.expanded`).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hetero.engine import pass_end
from hetero.errors import HeteroError, KernelError, ResourceError
from hetero.load_state import SequenceState, Snapshot, Speed
from hetero.recorded import MOST_TOKENS
from hetero.request import Ended, Read, Reason, Started
from hetero.sequence import Sequence
from hetero.token_gap import TokenGap
from hetero.turns import Turns, shared_with

if TYPE_CHECKING:
    from hetero.engine import Engine

UNKNOWN_SERVICE = 10.0  # seconds that a request is taken to need before one has ended
REMEMBERED = 8  # requests, about, over which that is averaged


class Owner(Protocol):
    def changed(self) -> None:
        """`snapshot` tells something else now."""

    def one_ended(self) -> None:
        """A sequence, and its listener was told."""


class Batching:
    """Used by one thread."""

    def __init__(self, engine: "Engine", gap: TokenGap, owner: Owner):
        self.engine, self.cache, self.gap, self._owner = engine, engine.cache, gap, owner
        self.rows = len(engine.cache.lengths)
        self.admitted: list[Sequence] = []  # in the order of submission
        self._turns = Turns()
        self.answered, self.was_read = Speed(), Speed()
        self.ended: Counter[str] = Counter()  # by reason
        self.totals: Counter[str] = Counter()  # tokens
        self.served, self.service = 0, UNKNOWN_SERVICE  # requests that had a place; seconds that one had it
        self.longest_gap = 0.0

    def rehearse(self) -> None:
        """Records the steps of few sequences, and times them."""
        self.engine.forget()
        for count in sorted({*range(1, min(self.rows, MOST_TOKENS) + 1), self.rows}):
            seconds = []
            for _ in range(3):
                started = perf_counter()
                self.engine.step(range(count), [0] * count)
                seconds.append(perf_counter() - started)
            self.gap.stepped(count, min(seconds[1:]), perf_counter())
            for row in range(count):
                self.cache.truncate(row, 0)

    def admit(self, sequence: Sequence) -> None:
        """There is a place."""
        taken = {other.row for other in self.admitted}
        sequence.shared = shared_with(sequence, self.reading())
        sequence.admitted(min(row for row in range(self.rows) if row not in taken), perf_counter())
        self.admitted.append(sequence)
        self._guarded(sequence, lambda: self._look(sequence))

    def reading(self) -> list[Sequence]:
        return [sequence for sequence in self.admitted if sequence.phase == "reading"]

    def compute(self) -> None:
        """A step for all answers, or a piece of a prompt."""
        reading = self.reading()
        running = [sequence for sequence in self.admitted if sequence.phase == "generating"]
        first = any(not sequence.telemetry.generated_tokens for sequence in running)
        if running and (first or not reading or self.gap.due(len(running), perf_counter())):
            self._step(running)
        elif reading:
            if not running:
                self.gap.alone()
            self._read(self._turns.next(reading), reading)

    def _step(self, running: list[Sequence]) -> None:
        """A token for each of them. Memory may still run out for what a pass makes on its way: it has left no token
        then, and each of them goes on alone, which needs least; what fails even so is its own request."""
        started = perf_counter()
        try:
            logits = self.engine.step([sequence.row for sequence in running], [sequence.last for sequence in running])
        except MemoryError as error:
            if len(running) == 1:
                return self.end(running[0], "failed", out_of_memory("memory ran out", error, "try again later"))
            for sequence in running:
                self._step([sequence])
            return
        now = perf_counter()
        self.gap.stepped(len(running), now - started, now)
        for sequence, row in zip(running, logits, strict=True):
            self._guarded(sequence, partial(self._choose, sequence, row))

    def _choose(self, sequence: Sequence, logits: np.ndarray) -> None:
        telemetry, now = sequence.telemetry, perf_counter()
        before = telemetry.generated_tokens
        sequence.choose(logits, now)
        self.answered.add(telemetry.generated_tokens - before, now)
        self.totals["generated"] += telemetry.generated_tokens - before
        self.longest_gap = max(self.longest_gap, telemetry.longest_gap_seconds)
        if sequence.going.reason is not None:
            self.end(sequence, sequence.going.reason)

    def _read(self, sequence: Sequence, reading: list[Sequence]) -> None:
        """A piece of its prompt."""
        started = perf_counter()
        if sequence.pieces is None and not self._begin(sequence):
            return
        assert sequence.pieces is not None, "a pass was begun"
        try:
            complete = next(sequence.pieces, sequence) is sequence
        except MemoryError as error:  # in this one's pass; another's may be shorter
            sequence.pieces = None
            failure = out_of_memory("memory ran out while the prompt was read", error, "shorten it")
            return self.end(sequence, "failed", failure)
        now = perf_counter()
        self.gap.read(now - started)
        self._turns.took(sequence, reading, now - started)
        if complete:
            sequence.pieces = None
            computed = int(self.cache.lengths[sequence.row]) - sequence.done
            self.was_read.add(computed, now)
            self._guarded(sequence, lambda: self._look(sequence, computed))

    def _begin(self, sequence: Sequence) -> bool:
        """The pass over the next chunk; False where none is needed any more."""
        self._guarded(sequence, lambda: self._look(sequence, begins=True))
        if sequence.phase != "reading":
            return False
        ids = sequence.prompt[sequence.done : pass_end(sequence.done, len(sequence.prompt))]
        sequence.pieces = self.engine.read(sequence.row, ids, self.gap.pace)
        return True

    def _look(self, sequence: Sequence, computed: int = 0, begins: bool = False) -> None:
        """What is cached of the prompt, after so many of its tokens were computed; `begins`: more is about to be."""
        before, sequence.done = sequence.done, self.cache.adopt(sequence.row, sequence.prompt)
        found, total = sequence.done - before - computed, len(sequence.prompt)
        self.totals["prompt"] += computed
        self.totals["cached"] += found
        sequence.telemetry.prompt_tokens += computed
        sequence.telemetry.cached_tokens += found
        if sequence.done == total:
            sequence.generate()
        if not sequence.told and (begins or sequence.done == total):
            sequence.told = True
            sequence.tell(Started(sequence.done))
        elif sequence.told and found + computed:
            sequence.tell(Read(sequence.done + (sequence.done == total), total + 1))

    def _guarded(self, sequence: Sequence, work: Callable[[], None]) -> None:
        """What a listener, a sampler or a constraint raises ends its own request."""
        try:
            work()
        except Exception as error:
            self.end(sequence, "failed", as_error(error))

    def end(self, sequence: Sequence, reason: Reason, error: HeteroError | None = None) -> None:
        """Also of one that still waits. What has been computed of it stays in the cache."""
        now = perf_counter()
        sequence.close()
        if sequence.row < 0:
            sequence.telemetry.queued_seconds = now - sequence.since
        else:
            self.cache.release(sequence.row)
            self.served += 1
            self.service += (now - sequence.admitted_at - self.service) / min(self.served, REMEMBERED)
        self.tell_end(sequence, reason, error)

    def tell_end(self, sequence: Sequence, reason: Reason, error: HeteroError | None) -> None:
        self.ended[reason] += 1
        if sequence in self.admitted:
            self.admitted.remove(sequence)
        self._owner.changed()
        with suppress(Exception):  # there is nobody else to be told
            sequence.tell(Ended(reason, error, sequence.telemetry))
        self._owner.one_ended()

    def fail(self, sequences: Iterable[Sequence], error: HeteroError) -> None:
        """The engine did. The cache is left as it is: nobody will read it."""
        for sequence in sequences:
            with suppress(Exception):
                sequence.close()
            self.tell_end(sequence, "failed", error)

    def snapshot(self) -> Snapshot:
        """Of what is known here."""
        cache, totals = self.cache, self.totals
        planned, running = self.engine.planned, sum(one.phase == "generating" for one in self.admitted)
        cached, free = len(cache.index.unheld), len(cache.free_pages)
        return Snapshot(
            sequences=tuple(state_of(sequence) for sequence in self.admitted),
            ceiling_tokens_per_second=planned.plan.decode_ceiling_tokens_per_second if planned else None,
            max_token_gap=self.gap.bound,
            longest_token_gap=self.longest_gap,
            step_seconds=self.gap.step_seconds(running),
            pages=cache.pages,
            pages_held=cache.pages - cached - free,
            pages_shared=cache.index.shared,
            pages_cached=cached,
            pages_free=free,
            pages_evicted=cache.index.evicted,
            prompt_tokens=totals["prompt"],
            cached_tokens=totals["cached"],
            generated_tokens=totals["generated"],
            ended=dict(self.ended),
        )


def state_of(sequence: Sequence) -> SequenceState:
    generated = sequence.telemetry.generated_tokens
    return SequenceState(sequence.number, sequence.phase, len(sequence.ids), sequence.done, generated)


def out_of_memory(found: str, error: MemoryError, remedy: str) -> ResourceError:
    """With which memory it was, where that is known."""
    return ResourceError(found, error.found if isinstance(error, HeteroError) else "", remedy)


def as_error(error: BaseException) -> HeteroError:
    """Of another's error the kind only: its message may quote what a client sent."""
    if isinstance(error, HeteroError):
        return error
    made = KernelError(f"{type(error).__name__} in a request", "", "this is a fault of the program")
    made.__cause__ = error
    return made.with_traceback(error.__traceback__)
