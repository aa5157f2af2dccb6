"""Several requests at once: a line in which they wait, and one thread in which everything is computed.

Who comes first gets the next place, a row of the cache, and with it all the memory that the sequence can need
(hetero.cache): a request that has begun does not fail for lack of it. What the thread does with those that have a place
says hetero.batching.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from hetero.batching import Batching
from hetero.continuation import Constraint, Continuation
from hetero.errors import ContextExceeded, Draining, HeteroError, KernelError, QueueFull
from hetero.load_state import Snapshot
from hetero.request import Ended, Event, Generated, Read, Request, Started
from hetero.sequence import Sequence
from hetero.token_gap import DEFAULT_BOUND, TokenGap

if TYPE_CHECKING:
    from hetero.engine import Engine

__all__ = [
    "Constraint",
    "ContextExceeded",
    "Draining",
    "Ended",
    "Event",
    "Generated",
    "QueueFull",
    "Read",
    "Request",
    "Scheduler",
    "Snapshot",
    "Started",
    "Ticket",
]

RESTART = "nothing can be computed any more: start again"
RETRY = (1.0, 600.0)  # seconds, the least and the most that a client is asked to wait


class Ticket:
    """A submitted request. `id` is its number in snapshots."""

    def __init__(self, id: int, cancel: Callable[[], None]):
        self.id, self.cancel = id, cancel


class Scheduler:
    """`max_token_gap`: seconds between two tokens of an answer, at most, while prompts are read. `queue`: requests that
    may wait beside those that run. All methods may be called from any thread, `close` and `join` not from a listener.

    It is ready when it has been made: steps of several sequences were tried. What fails then is raised.
    """

    def __init__(self, engine: "Engine", *, max_token_gap: float | None = None, queue: int = 64):
        default = DEFAULT_BOUND["cpu" if engine.model.gpu is None else "gpu"]
        self.engine, self.queue = engine, queue
        self._work = Batching(engine, TokenGap(max_token_gap or default), self)  # of its thread alone
        self._changed = threading.Condition()  # guards all that follows
        self._line: deque[Sequence] = deque()
        self._open = self._numbered = self._refused = 0
        self._draining = self._closing = self._cancels = False
        self._failure: HeteroError | None = None
        self._snapshot = Snapshot()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hetero-scheduler", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    # From any thread

    def submit(self, request: Request) -> Ticket:
        """RequestError, ContextExceeded: never possible. QueueFull, Draining: not now. Or what has ended the engine."""
        asked, room = request.sampling.max_tokens, self.engine.context - len(request.ids)
        if room < 1:
            raise ContextExceeded(len(request.ids), self.engine.context)
        ids = self.engine.checked_array(request.ids)
        going = Continuation(
            ids,
            request.sampling,
            self.engine.config.vocab_size,
            room if asked is None else min(asked, room),
            request.stop_ids,
            request.constraint,
            request.logprobs,
        )
        with self._changed:
            self._refuse(request)
            self._numbered += 1
            self._open += 1
            sequence = Sequence(self._numbered, request, ids, going, perf_counter())
            self._line.append(sequence)
            self._changed.notify_all()
        return Ticket(sequence.number, lambda: self._cancel(sequence))

    def _refuse(self, request: Request) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # it would grow with each request
        if self._closing or (self._draining and not request.later):
            raise Draining
        waiting = sum(not sequence.request.later for sequence in self._line)
        places = self._work.rows - (self._open - len(self._line))
        if not request.later and waiting >= self.queue + places:
            self._refused += 1
            least, most = RETRY
            raise QueueFull(waiting, min(most, max(least, self._work.service / self._work.rows)))

    def _cancel(self, sequence: Sequence) -> None:
        with self._changed:
            sequence.cancelled = self._cancels = True
            self._changed.notify_all()

    def drain(self) -> None:
        """Whoever waits or runs is answered; `submit` raises Draining from now on."""
        with self._changed:
            self._draining = True

    def join(self, timeout: float | None = None) -> bool:
        """Whether all requests have ended, after `timeout` seconds at most."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, timeout)

    def close(self) -> None:
        """Cancels all requests and closes the engine."""
        with self._changed:
            already, self._closing = self._closing, True
            self._changed.notify_all()
        self._thread.join()
        if not already:
            self.engine.close()

    @property
    def failed(self) -> bool:
        """Nothing can be computed any more."""
        return self._failure is not None

    def snapshot(self) -> Snapshot:
        """At any time, at once."""
        with self._changed:
            now = perf_counter()
            return replace(
                self._snapshot,
                waiting=len(self._line),
                tokens_per_second=self._work.answered.at(now),
                prompt_tokens_per_second=self._work.was_read.at(now),
                refused=self._refused,
                draining=self._draining,
            )

    # In the scheduler's thread

    def _run(self) -> None:
        try:
            self._work.rehearse()
            self.changed()
            self._ready.set()
            while self._turn():
                self.changed()
        except BaseException as error:
            self._fail(error)
        finally:
            self._ready.set()

    def _turn(self) -> bool:
        """A step, a piece of a prompt, or a wait for something to do; False when it is over."""
        work = self._work
        with self._changed:
            self._changed.wait_for(lambda: work.admitted or self._line or self._closing)
            closing, cancels, self._cancels = self._closing, self._cancels, False
            known = [*work.admitted, *self._line] if closing or cancels else []
        for sequence in [one for one in known if closing or one.cancelled]:
            with self._changed:
                if sequence in self._line:
                    self._line.remove(sequence)
            work.end(sequence, "cancelled")
        if closing:
            return False
        while self._line and len(work.admitted) < work.rows:
            work.admit(self._line[0])
            with self._changed:
                self._line.popleft()
                self._snapshot = work.snapshot()
        work.compute()
        return True

    def changed(self) -> None:
        snapshot = self._work.snapshot()
        with self._changed:
            self._snapshot = snapshot

    def one_ended(self) -> None:
        """Its listener has been told."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def _fail(self, cause: BaseException) -> None:
        """Of the engine: nobody can go on."""
        error = (
            cause if isinstance(cause, HeteroError) else KernelError(f"{type(cause).__name__}: {cause}", "", RESTART)
        )
        error.__cause__ = None if error is cause else cause
        with self._changed:
            self._failure = error
            line = [*self._line]
            self._line.clear()
        self._work.fail(dict.fromkeys([*self._work.admitted, *line]), error)
