"""Where the time of a forward pass goes: the same pass, through callables that watch the clock.

The engine's own path has no clocks in it: a copy of its model, whose blocks are watched, runs on its cache instead.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hetero.engine import Engine
    from hetero.model import Block, Model

PARTS = ("attention", "experts", "dense", "head", "other")


class Clock:
    """Seconds by part. A part that runs inside another one does not count for the outer one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._counted = 0.0  # of all parts together

    def __call__(self, part: str, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        before, started = self._counted, perf_counter()
        result = work(*arguments, **named)
        taken = perf_counter() - started
        self.seconds[part] += taken - (self._counted - before)
        self._counted = before + taken
        return result


class Watched:
    """Stands in for a part of the model: calls it, and lets the clock know; everything else is the part's own."""

    def __init__(self, clock: Clock, part: str, original: Any):
        self._clock, self._part, self._original = clock, part, original

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._clock(self._part, self._original, *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def watched(model: "Model", clock: Clock) -> "Model":
    """MoE layers, router and shared expert included, are "experts"; dense layers "dense"; norms between, "other"."""
    twin = copy(model)
    twin.recordable = None  # a replay does not pass by the clocks
    twin.blocks = [_watched_block(block, clock) for block in model.blocks]
    twin.output = Watched(clock, "head", model.output)  # type: ignore[assignment]
    return twin


def _watched_block(block: "Block", clock: Clock) -> "Block":
    from hetero.moe import MoE  # not above: it compiles kernels

    part = "experts" if isinstance(block.feed_forward, MoE) else "dense"
    attention: Any = Watched(clock, "attention", block.attention)
    feed_forward: Any = Watched(clock, part, block.feed_forward)
    return replace(block, attention=attention, feed_forward=feed_forward)


def time_by_part(engine: "Engine", passes: list[list[int]]) -> dict[str, float]:
    """Seconds of each part of one pass, the mean over passes that feed these tokens after what is cached.

    Each computes the logits of its last token.
    """
    clock = Clock()
    twin = watched(engine.model, clock)
    for ids in passes:
        clock("other", _feed, engine, twin, ids)
    return {part: seconds / len(passes) for part, seconds in clock.seconds.items()}


def _feed(engine: "Engine", model: "Model", ids: list[int]) -> None:
    """One pass of `model` over the next tokens of the engine's sequence, not recorded and not replayed."""
    from hetero.model import Batch

    cache = engine.cache
    batch = Batch(
        ids=np.asarray(ids, np.int64),
        positions=cache.extend(0, ids),
        sequence=np.zeros(len(ids), np.int32),
        block_table=cache.block_table,
        lengths=np.array([len(tokens) for tokens in cache.tokens], np.int32),
        logits_at=np.array([len(ids) - 1]),
    )
    model.forward(batch, cache.layers)
