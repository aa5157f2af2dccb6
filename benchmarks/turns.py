"""Contenders timed in turns, because a shared machine drifts: only what ran within the same second is compared.

A turn begins with calls that are not counted: the contender's threads wake up, and those of the one before, which may
still spin, go to sleep.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

WAKING, TURN = 0.003, 0.01  # seconds; a call that takes longer is made once
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Contender:
    """`call` is timed; `wake` before the turn (without it: calls), `prepare` before a call, `rest` after it are not."""

    call: Callable[[], object]
    wake: Callable[[], object] | None = None
    prepare: Callable[[], object] = lambda: None
    rest: Callable[[], object] = lambda: None

    def turn(self) -> float:
        """Seconds of a call, the median of a few."""
        end = perf_counter() + WAKING
        (self.wake or self.seconds)()
        while perf_counter() < end:
            (self.wake or self.seconds)()
        times, end = [self.seconds()], perf_counter() + TURN
        while perf_counter() < end:
            times.append(self.seconds())
        self.rest()
        return median(times)

    def seconds(self) -> float:
        self.prepare()
        started = perf_counter()
        self.call()
        return perf_counter() - started


def take_turns(contenders: dict[str, Contender], seconds: float) -> dict[str, list[float]]:
    """Seconds per call of each contender in each round, for so long and at least LEAST_ROUNDS rounds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    rounds, end = 0, perf_counter() + seconds
    while rounds < LEAST_ROUNDS or perf_counter() < end:
        for name, contender in contenders.items():
            times[name].append(contender.turn())
        rounds += 1
    return times


def compare(times: dict[str, list[float]], ours: str) -> dict[str, object]:
    """Ours beside the better of the others: its name, the ratio of the medians, the median of the rounds' ratios."""
    others = {name: median(series) for name, series in times.items() if name != ours}
    best = min(others, key=others.__getitem__)
    ratios = [theirs / mine for theirs, mine in zip(times[best], times[ours], strict=True)]
    return {
        "best_other": best,
        "ratio_of_medians": others[best] / median(times[ours]),
        "median_of_ratios": median(ratios),
        "rounds": len(ratios),
    }
