"""The engine on a slice of a model, among the contestants of a benchmark: its passes are timed layer by layer.

A prompt passes all layers but the last one, of which it needs only the cache. In a slice that would leave out a layer
in four or two: here a layer is added that lies behind its last and shares the weights of the first, so all its own are
passed.

With a GPU the parts are timed one by one too, launched anew and each waited for: in proportion to them the time of a
pass, in which they overlap and which may be replayed, is divided up.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from statistics import mean, median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from hetero.contest import Here, Hetero
from hetero.extrapolate import PassTimes
from hetero.parts import GpuStamps, Stamps, stamped
from hetero.prediction import predictor
from hetero.progress import LoadingBar
from hetero.run_config import RunConfig
from hetero.synthetic import Slice, load_slice
from hetero.terminal import Screen
from placement.predict import Predictor

if TYPE_CHECKING:
    from hetero.model import Block

STEPS = 9  # decoded tokens that are taken apart; the first is not counted
TOUCHED_STEPS = 32  # decoded tokens whose experts are counted


class SyntheticHetero(Hetero):
    """The engine on a slice."""

    def __init__(self, made: Slice, run: RunConfig):
        started = perf_counter()
        with LoadingBar(Screen()) as progress:
            self.engine = load_slice(made, run, progress, Screen().note)
        self.load_seconds = perf_counter() - started
        self._peak, self._read = 0, False
        self.made = made
        self.decoded, self.prefilled = list[PassTimes](), list[PassTimes]()
        self.touched = dict[str, Any]()
        self.decode([0], 1)

    def prefill(self, ids: Sequence[int]) -> float:
        speed = super().prefill(ids)
        if not self.made.is_whole and len(ids) > 1:
            self.prefilled.append(self._prefill_times(list(ids[:-1])))
        return speed

    def parts(self, ids: Sequence[int]) -> dict[str, float]:
        depth, cache, layers = len(ids) - 1, self.engine.cache, len(self.made.layers)
        self.decode(ids, 0)
        steps = min(STEPS, self.engine.context - depth)
        times = []
        for count in (layers, 1):
            cache.truncate(0, depth)
            times.append(self._decode_times(steps, count))
        full, first = times
        each = min(max(0.0, (full.other - first.other) / (layers - 1)), full.other / layers)
        self.decoded.append(replace(full, once=full.other - each * layers))
        return full.by_part(self.made.config.dense_layers)

    def predictor(self) -> Predictor:
        """Of the whole model."""
        return predictor(self.engine, self.made.whole)

    def _decode_times(self, steps: int, count: int) -> PassTimes:
        """Of the first layers only; the medians of all steps but the first, whose pass is recorded."""
        ids, found = self._random_ids(steps), list[PassTimes]()
        twin, stamps = self._twin(count)
        layers = self.engine.cache.layers[:count]
        twin.recordable = layers if twin.gpu is None else None
        for id in ids:
            stamps.spans = stamps.spans if twin.gpu is None else []
            seconds = self._pass(twin, layers, [id], np.zeros(1, np.int64))
            found.append(_times(stamps, seconds))
        rows = found[1:] or found
        attention, feed_forward = (
            np.median([getattr(row, part) for row in rows], axis=0).tolist() for part in ("attention", "feed_forward")
        )
        return PassTimes(attention, feed_forward, median(row.head for row in rows), median(row.other for row in rows))

    def _prefill_times(self, ids: list[int]) -> PassTimes:
        engine = self.engine
        model: Any = engine.model
        layers = engine.cache.layers
        behind = model.blocks[0 if model.gpu is None or model.last is None else -1]
        spare = behind.attention.side.cache_layer(len(layers[0]), engine.run.kv, engine.config.cache_width)
        engine.forget()
        found = list[PassTimes]()
        for chunk in engine.chunks(ids):
            twin, stamps = self._twin(len(layers))
            self._append(twin, behind)
            seconds = self._pass(twin, [*layers, spare], chunk, np.empty(0, np.int64))
            times = _times(stamps, seconds)
            if model.gpu is not None:  # whose parts overlap
                engine.cache.truncate(0, engine.tokens_cached - len(chunk))
                plain = copy(model)
                plain.blocks = list(model.blocks)
                self._append(plain, behind)
                times = times.scaled(self._pass(plain, [*layers, spare], chunk, np.empty(0, np.int64)) / seconds)
            found.append(times)
        self.touched["prefill"] = self._experts(len(chunk), model.choices())
        engine.forget()
        attention, feed_forward = (
            np.sum([getattr(row, part) for row in found], axis=0).tolist() for part in ("attention", "feed_forward")
        )
        return PassTimes(attention, feed_forward, 0.0, sum(row.other for row in found))

    def _append(self, model: Any, block: "Block") -> None:
        model.blocks = [*model.blocks, block]
        if block.attention.side is model.gpu:
            model.meets, model.on_gpu = [*model.meets, False], model.on_gpu + 1

    def _twin(self, count: int) -> tuple[Any, Stamps]:
        """The model's first layers, with stamps of the clock between their parts, which do not overlap then."""
        engine, model = self.engine, self.engine.model
        stamps = Stamps(engine.pool) if model.gpu is None else GpuStamps(engine)
        twin: Any = stamped(model, stamps)
        twin.blocks = twin.blocks[:count]
        if model.gpu is not None:
            twin.meets, twin.on_gpu, twin.in_halves = twin.meets[:count], min(twin.on_gpu, count), False
        return twin, stamps

    def _pass(self, model: Any, layers: list[np.ndarray], ids: list[int], logits_at: np.ndarray) -> float:
        from hetero.model import Batch

        cache = self.engine.cache
        batch = Batch(
            ids=np.asarray(ids, np.int64),
            positions=cache.extend(0, ids),
            sequence=np.zeros(len(ids), np.int32),
            block_table=cache.block_table,
            lengths=cache.lengths.copy(),
            logits_at=logits_at,
        )
        last = getattr(model, "last", None)  # what the CPU computes behind a GPU's layers
        owner = last and last.model
        if last:
            last.model = model
        try:
            started = perf_counter()
            model.forward(batch, layers)
            if model.gpu is not None:
                model.gpu.wait()
            return perf_counter() - started
        finally:
            if last:
                last.model = owner

    def _random_ids(self, count: int) -> list[int]:
        return np.random.default_rng(len(self.decoded)).integers(0, self.engine.config.vocab_size, count).tolist()

    def facts(self) -> dict[str, Any]:
        if self.engine.model.mixtures:
            self.touched["decode"] = self._decoded_experts()
        times = {"decoded": self.decoded, "prefilled": self.prefilled, "touched": self.touched}
        return super().facts() | times

    def _decoded_experts(self) -> dict[str, float]:
        """Which the last tokens that fit into the context choose, when they are decoded one by one."""
        engine, chosen = self.engine, list[list[np.ndarray]]()
        ids = self._random_ids(min(TOUCHED_STEPS, engine.context))
        engine.forget()
        for id in ids:
            engine.scores([id])
            chosen.append([ids.copy() for ids in engine.model.choices()])
        return self._experts(len(ids), [np.concatenate(rows) for rows in zip(*chosen, strict=True)])

    def _experts(self, tokens: int, chosen: list[np.ndarray]) -> dict[str, float]:
        """How many different ones so many tokens chose, a layer's mean, and how many they would at random."""
        config = self.engine.config
        expected = config.experts * (1 - (1 - config.experts_used / config.experts) ** tokens)
        return {"tokens": tokens, "distinct": mean(len(np.unique(ids)) for ids in chosen), "expected": expected}


class SyntheticHere(Here):
    """In this process."""

    def __init__(self, made: Slice, run: RunConfig):
        self._contestant = SyntheticHetero(made, run)


def _times(stamps: Stamps, seconds: float) -> PassTimes:
    """Of the spans of the last pass: attention and feed-forward of each layer, then perhaps the head."""
    spans = [(part, int(end[0] - begin[0]) / 1e9) for part, begin, end in stamps.spans]
    attention = [spent for part, spent in spans if part == "attention"]
    feed_forward = [spent for part, spent in spans if part in ("experts", "dense")]
    head = sum(spent for part, spent in spans if part == "head")
    return PassTimes(attention, feed_forward, head, seconds - sum(spent for _, spent in spans))
