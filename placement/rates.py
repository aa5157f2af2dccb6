"""Seconds of a processor's kernels, from the rates of placement.machine."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from placement.cost import absorbed_flops, absorbed_limit, absorbed_values, column_shares, expanded_flops
from placement.machine import AttentionRate, LinearRate, Processor, VerbRate
from placement.model import Dimensions

MANY = 48  # tokens an expert, from which on the mean number stands for all
# How much longer products take with weights as they are in the file, by columns, where it was not measured: they are
# rearranged at each use. Medians of six types, one core of a Zen 4 each: 1.2 to 3.0, 1.3 to 1.8, 1.0 to 1.3
MAPPED = ((1, 2.0), (8, 1.4), (64, 1.0))


def interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """Linear between points (x, y), x ascending; outside of them as at the nearest."""
    if at <= points[0][0]:
        return points[0][1]
    if at >= points[-1][0]:
        return points[-1][1]
    low, high = next((low, high) for low, high in pairwise(points) if at <= high[0])
    return low[1] + (high[1] - low[1]) * (at - low[0]) / (high[0] - low[0])


def flop_seconds(rate: LinearRate, columns: float) -> float:
    """Seconds for each FLOP that one column takes, at so many columns: linear between those measured, in proportion
    beyond the last."""
    known = [(float(c), c / flops) for c, flops in rate.flops_at]
    if columns <= 0:
        return 0.0
    last, seconds = known[-1]
    return seconds * columns / last if columns >= last else interpolated(known, columns)


@lru_cache(4096)
def expert_seconds(rate: LinearRate, tokens: int, probability: float) -> float:
    """The same of an expert that each of T tokens chooses with this probability: expected."""
    if tokens * probability > MANY:
        return flop_seconds(rate, tokens * probability)
    shares = column_shares(tokens, probability)
    return sum(share * flop_seconds(rate, c) for c, share in shares.items())


class Rates:
    """Of one processor. `slower`: how much longer products and attention take than they were measured."""

    def __init__(self, processor: Processor, slower: float = 1.0):
        self.processor, self.slower = processor, slower
        self._linear: dict[tuple[str, str], LinearRate] = {(rate.verb, rate.type): rate for rate in processor.linear}
        self._verbs: dict[str, VerbRate] = {rate.verb: rate for rate in processor.verbs}
        self._chosen: dict[tuple[str, str], LinearRate] = {}

    def linear(self, verb: str, type: str, bytes_per_weight: float) -> LinearRate:
        """That of the verb and type; else of "linear" and the type; else of the type nearest in size."""
        key = verb, type
        if key not in self._chosen:
            found = self._linear.get(key) or self._linear.get(("linear", type))
            self._chosen[key] = found or self._nearest(verb, bytes_per_weight)
        return self._chosen[key]

    def _nearest(self, verb: str, bytes_per_weight: float) -> LinearRate:
        """Rates of a type that was not measured: where it is larger, it is read that much longer."""
        known = [rate for rate in self._linear.values() if rate.verb == verb]
        known = known or [rate for rate in self._linear.values() if rate.verb == "linear"]
        rate = min(known, key=lambda rate: (abs(rate.bytes_per_weight - bytes_per_weight), rate.type))
        larger = max(1.0, bytes_per_weight / rate.bytes_per_weight)
        flops_at = tuple((columns, flops / larger) for columns, flops in rate.flops_at)
        return LinearRate(rate.verb, rate.type, bytes_per_weight, rate.call_seconds, flops_at)

    def mapped(self, type: str, columns: float) -> float:
        """How much longer products with weights of a mapped file take than with rearranged ones."""
        there, here = self._linear.get(("mapped", type)), self._linear.get(("linear", type))
        if there and here:
            return flop_seconds(there, columns) / flop_seconds(here, columns)
        return interpolated(MAPPED, columns)

    def attention(self, kv: str) -> AttentionRate:
        known = self.processor.attention
        return next((rate for rate in known if rate.kv == kv), known[0])

    def attention_seconds(self, dimensions: Dimensions, kv: str, tokens: int, depth: int) -> float:
        """Of one layer, over a cache of `depth` tokens and the new ones."""
        rate = self.attention(kv)
        if tokens > absorbed_limit(dimensions):
            return rate.call_seconds + self.slower * expanded_flops(dimensions, tokens, depth) / rate.expanded
        speed = rate.decode if tokens == 1 else rate.absorbed
        seconds = absorbed_flops(dimensions, tokens, depth) / speed
        seconds += dimensions.heads * tokens * rate.row_seconds
        seconds += absorbed_values(dimensions, tokens, depth) * rate.value_seconds
        return rate.call_seconds + self.slower * seconds

    def verb_seconds(self, verb: str, calls: int, values: float) -> float:
        rate = self._verbs.get(verb)
        return 0.0 if rate is None else calls * rate.call_seconds + values * rate.value_seconds
