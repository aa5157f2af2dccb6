"""The median time of a call, within a budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpu_kernels import Pool


@dataclass(frozen=True)
class Stopwatch:
    """`seconds` for each figure, but at least `samples` samples, of which the median counts."""

    seconds: float = 0.02
    samples: int = 3
    clock: Callable[[], float] = perf_counter

    def time(self, call: Callable[[], object]) -> float:
        """Seconds of a call; the first, which may allocate, does not count."""
        call()
        found, started = list[float](), self.clock()
        while len(found) < self.samples or self.clock() - started < self.seconds:
            before = self.clock()
            call()
            found.append(self.clock() - before)
        return median(found)

    def time_recorded(self, pool: "Pool", calls: Sequence[Callable[[], object]], parts: int = 1) -> float:
        """Mean seconds of these calls of the pool's entries, one after the other as in a recorded step.

        With `parts`, a sample is one part of the calls, each time the next one: as many in all of them.
        """
        parts = min(parts, len(calls))
        each, programs = len(calls) // parts, []
        for part in range(parts):
            with pool.record() as program:
                for call in calls[part * each : (part + 1) * each]:
                    call()
            programs.append(program.replay)
        return self.time_in_turn(programs) / each

    def time_in_turn(self, calls: Sequence[Callable[[], object]]) -> float:
        """Seconds of a call, each time of the next one."""
        turn = iter(range(1 << 62))
        return self.time(lambda: calls[next(turn) % len(calls)]())
