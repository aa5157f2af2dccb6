"""Contenders timed in turns, because a shared machine drifts: only what ran within the same second is compared.

A turn begins with calls that are not counted: the contender's threads wake up, and those of the one before, which may
still spin, go to sleep. Where other processes keep a thread from its CPU, all that spins suffers, and not evenly: the
kernel tells how long threads waited, and rounds in which they did are left out, as long as there are others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

WAKING, TURN = 0.003, 0.01  # seconds; a call that takes longer is made once
LEAST_ROUNDS = 3
QUIET = 0.02  # of a turn's time, waited by all threads together
PATIENCE = 3  # times as long as asked for, to find quiet rounds


def waited() -> float:
    """Seconds that the living threads of this process have been ready to run, but were not run."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[1])
        except (OSError, IndexError):  # the thread has ended; a kernel that does not count
            continue
    return total / 1e9


@dataclass(frozen=True)
class Contender:
    """`call` is timed; `wake` before the turn (without it: calls), `prepare` before a call, `rest` after it are not."""

    call: Callable[[], object]
    wake: Callable[[], object] | None = None
    prepare: Callable[[], object] = lambda: None
    rest: Callable[[], object] = lambda: None

    def turn(self) -> tuple[float, float]:
        """Seconds of a call, the median of a few; the share of the turn that threads waited."""
        end = perf_counter() + WAKING
        (self.wake or self.seconds)()
        while perf_counter() < end:
            (self.wake or self.seconds)()
        before, started = waited(), perf_counter()
        times = [self.seconds()]
        while perf_counter() < started + TURN:
            times.append(self.seconds())
        share = (waited() - before) / (perf_counter() - started)
        self.rest()
        return median(times), share

    def seconds(self) -> float:
        self.prepare()
        started = perf_counter()
        self.call()
        return perf_counter() - started


@dataclass(frozen=True)
class Rounds:
    """Seconds per call of each contender in each round that counts; the greatest share of a turn that was waited."""

    times: dict[str, list[float]]
    waited: float
    dropped: int

    def take(self, name: str) -> float:
        """The median of a contender, which is taken out of the comparison."""
        return median(self.times.pop(name))

    def medians(self) -> dict[str, float]:
        return {name: median(series) for name, series in self.times.items()}

    def compare(self, ours: str) -> dict[str, object]:
        """Beside the better of the others: its name, the ratio of the medians, the median of the rounds' ratios."""
        medians = self.medians()
        mine = medians.pop(ours)
        best = min(medians, key=medians.__getitem__)
        ratios = [b / a for a, b in zip(self.times[ours], self.times[best], strict=True)]
        return {
            "best_other": best,
            "ratio_of_medians": medians[best] / mine,
            "median_of_ratios": median(ratios),
            "rounds": len(ratios),
            "rounds_dropped": self.dropped,
            "waited": self.waited,
        }


def take_turns(contenders: dict[str, Contender], seconds: float) -> Rounds:
    """Rounds for so long and at least LEAST_ROUNDS quiet ones; if none come, the quietest there were."""
    rounds: list[tuple[float, dict[str, float]]] = []
    started = perf_counter()
    while True:
        turns = {name: contender.turn() for name, contender in contenders.items()}
        rounds.append((max(share for _, share in turns.values()), {name: took for name, (took, _) in turns.items()}))
        passed, quiet = perf_counter() - started, sum(share <= QUIET for share, _ in rounds)
        enough = quiet if passed < PATIENCE * seconds else len(rounds)
        if passed >= seconds and enough >= LEAST_ROUNDS:
            break
    count = max(quiet, LEAST_ROUNDS)
    kept = sorted(rounds, key=lambda round: round[0])[:count]
    times = {name: [took[name] for _, took in kept] for name in contenders}
    return Rounds(times, max(share for share, _ in kept), len(rounds) - len(kept))
