"""From the speed of some layers to that of the whole model: what passes took, layer by layer, is added up again.

A decoded token passes all layers. A prompt passes all but the last one, of which it needs only the cache; then its last
token is decoded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from hetero.parts import PARTS
from hetero.synthetic import Slice, slice_report
from placement.model import Model, Tensor

OF_SLICE = (
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "decode_ceiling_tokens_per_second",
    "weight_bytes_per_token",
    "kv_bytes_at_depth",
    "parts",
)


@dataclass(frozen=True)
class PassTimes:
    """Seconds of one pass, of a decoded token or of a prompt but for its last token."""

    attention: list[float]  # of each layer
    feed_forward: list[float]
    head: float
    other: float  # what all layers together take besides
    once: float = 0.0  # of that, what does not depend on their number

    def scaled(self, factor: float) -> "PassTimes":
        attention, feed_forward = ([factor * one for one in found] for found in (self.attention, self.feed_forward))
        return PassTimes(attention, feed_forward, factor * self.head, factor * self.other, factor * self.once)

    def by_part(self, dense: int) -> dict[str, float]:
        return {
            "attention": sum(self.attention),
            "experts": sum(self.feed_forward[dense:]),
            "dense": sum(self.feed_forward[:dense]),
            "head": self.head,
            "other": self.other,
        }


def extrapolated(
    document: dict[str, Any], made: Slice, speeds: Iterable[float], facts: dict[str, Any]
) -> dict[str, Any]:
    """A document of a slice made into one of the whole model. `speeds`: tokens/s the slice decoded, in each round."""
    dense, report = made.config.dense_layers, slice_report(made, whole=True)
    measured = {"layers": list(made.layers), "bytes": made.model.nbytes} | {key: document[key] for key in OF_SLICE}
    document = document | {
        "model_bytes": report["bytes"],
        "layers": made.whole.dimensions.layers,
        "slice": measured,
        "experts_touched": facts["touched"],
    }
    if made.is_whole:
        return document
    passes = [whole_pass(made, times) for times in facts["decoded"]]
    decode = [
        speed * sum(times.by_part(dense).values()) / sum(parts.values())
        for speed, times, parts in zip(speeds, facts["decoded"], passes, strict=True)
    ]
    last = 1 / median(decode)  # seconds: a prompt's last token
    prompts = [sum(whole_pass(made, times, prompt=True).values()) + last for times in facts["prefilled"]] or [last]
    prefill = [document["prompt_tokens"] / seconds for seconds in prompts]
    weights, cache = report["active_bytes_per_token"], document["depth"] * report["kv_bytes_per_token"][document["kv"]]
    return document | {
        "prefill_tokens_per_second": median(prefill),
        "prefill_tokens_per_second_best": max(prefill),
        "decode_tokens_per_second": median(decode),
        "decode_tokens_per_second_best": max(decode),
        "decode_ceiling_tokens_per_second": facts.get("predicted", {}).get("ceiling")
        or document["read_bandwidth_bytes_per_second"] / (weights + cache),
        "weight_bytes_per_token": weights,
        "kv_bytes_at_depth": cache,
        "parts": {part: median(row[part] for row in passes) for part in PARTS},
        "extrapolated_from_layers": len(made.layers),
    }


def whole_pass(made: Slice, times: PassTimes, prompt: bool = False) -> dict[str, float]:
    """Seconds by part of a pass through the whole model. `prompt`: all but its last layer.

    A layer of the whole model takes as long as those measured with the same types; where there is none, a decoded token
    takes longer in proportion to the bytes it reads, a prompt as long as in the others.
    """
    d, count = made.whole.dimensions, len(made.layers)
    passed = d.layers - 1 if prompt else d.layers
    found = dict.fromkeys(PARTS, 0.0)
    feed_forward = _feed_forward_tensors(made.whole)
    for layer in range(passed):
        part = "dense" if layer < d.dense_layers else "experts"
        found[part] += _stand_in(made, feed_forward, times.feed_forward, layer, by_bytes=not prompt)
    found["attention"] = mean(times.attention) * passed
    found["head"] = times.head
    found["other"] = times.once + (times.other - times.once) / count * passed
    return found


def _feed_forward_tensors(model: Model) -> dict[int, list[Tensor]]:
    found: dict[int, list[Tensor]] = {layer: [] for layer in range(model.dimensions.layers)}
    for tensor in model.tensors:
        if tensor.layer is not None and ".ffn_" in tensor.name:
            found[tensor.layer].append(tensor)
    return found


def _stand_in(made: Slice, tensors: dict[int, list[Tensor]], seconds: list[float], layer: int, by_bytes: bool) -> float:
    """Seconds of the feed-forward part of a layer of the whole model. `seconds`: of the layers measured."""
    dense = made.whole.dimensions.dense_layers
    alike = {i: true for i, true in enumerate(made.layers) if (true < dense) == (layer < dense)}
    same = [i for i, true in alike.items() if _types(tensors[true]) == _types(tensors[layer])]
    if same:
        return mean(seconds[i] for i in same)
    ratio = {i: _nbytes(tensors[layer]) / _nbytes(tensors[true]) if by_bytes else 1.0 for i, true in alike.items()}
    return mean(seconds[i] * ratio[i] for i in alike)


def _types(tensors: list[Tensor]) -> list[str]:
    return [tensor.type for tensor in tensors]


def _nbytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
