"""Where the time of a decoded token goes: the same pass, with stamps of the clock between its parts.

The engine's own path has no clocks in it: a copy of its model, with stamps around the parts, runs on its cache instead.
The stamps are entries of the pool, so a recorded pass takes them along, and is as fast as the one it stands for.
"""

from copy import copy
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cpu_kernels import Pool
    from hetero.engine import Engine
    from hetero.model import Block, Model

PARTS = ("attention", "experts", "dense", "head", "other")


class Stamps:
    """The times at which parts of a pass began and ended; a replay of the pass writes them anew."""

    def __init__(self, pool: "Pool"):
        from cpu_kernels import clock  # not above: it compiles kernels

        self._pool, self._stamp = pool, clock.stamp
        self.spans: list[tuple[str, np.ndarray, np.ndarray]] = []

    def around(self, part: str, original: Any) -> "Stamped":
        return Stamped(self, part, original)

    def call(self, part: str, work: Any, arguments: tuple, named: dict[str, Any]) -> Any:
        begin = self._stamp(self._pool)
        result = work(*arguments, **named)
        self.spans.append((part, begin, self._stamp(self._pool)))
        return result

    def seconds(self, last: int) -> dict[str, float]:
        """By part, of so many spans at the end of the list."""
        found = dict.fromkeys(PARTS, 0.0)
        for part, begin, end in self.spans[-last:]:
            found[part] += int(end[0] - begin[0]) / 1e9
        return found


class Stamped:
    """Stands in for a part of the model: calls it between two stamps; everything else is the part's own."""

    def __init__(self, stamps: Stamps, part: str, original: Any):
        self._stamps, self._part, self._original = stamps, part, original

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._stamps.call(self._part, self._original, arguments, named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def stamped(model: "Model", stamps: Stamps) -> "Model":
    """MoE layers, router and shared expert included, are "experts"; dense layers "dense"; norms between, "other"."""
    twin = copy(model)
    twin.recorded = {}  # its own
    twin.blocks = [_stamped_block(block, stamps) for block in model.blocks]
    twin.output = stamps.around("head", model.output)  # type: ignore[assignment]
    return twin


def _stamped_block(block: "Block", stamps: Stamps) -> "Block":
    from hetero.moe import MoE  # not above: it compiles kernels

    part = "experts" if isinstance(block.feed_forward, MoE) else "dense"
    attention: Any = stamps.around("attention", block.attention)
    feed_forward: Any = stamps.around(part, block.feed_forward)
    return replace(block, attention=attention, feed_forward=feed_forward)


def time_by_part(engine: "Engine", ids: list[int]) -> dict[str, float]:
    """Seconds of each part of one decoded token: the mean over `ids`, fed after what is cached.

    The first of at least two is not counted: its pass is recorded.
    """
    stamps, twin = Stamps(engine.pool), copy(engine)
    twin.model = stamped(engine.model, stamps)
    twin.scores([ids[0]])
    spans, total = len(stamps.spans), dict.fromkeys(PARTS, 0.0)
    for id in ids[1:]:
        started = perf_counter()
        twin.scores([id])
        whole, found = perf_counter() - started, stamps.seconds(spans)
        found["other"] = whole - sum(found.values())
        total = {part: total[part] + found[part] for part in PARTS}
    return {part: seconds / (len(ids) - 1) for part, seconds in total.items()}
