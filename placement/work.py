"""What each processor has to do in a pass, given where the tensors lie: products of the same kind added up."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from placement.cost import product_flops
from placement.errors import PlacementError
from placement.machine import CPU, DISK, GPU
from placement.model import Model, Part, Tensor
from placement.plan import Placed, by_tensor

Verb = Literal["linear", "heads", "experts"]
_PROJECTIONS = ("attn_q.", "attn_q_a.", "attn_q_b.", "attn_kv_a_mqa.")  # all that a pass without logits does at last
_SHARING_A_CALL = ("attn_kv_a_mqa.", "ffn_up", "ffn_down", "exp_probs_b")  # with another tensor
_COMPUTED: tuple[Part, ...] = ("mla", "shared expert", "dense ffn", "head", "router")


@dataclass(frozen=True)
class Kind:
    """Products that differ in nothing but their size."""

    part: Part
    place: str  # the processor
    verb: Verb
    type: str
    probability: float | None  # that a token chooses the expert; None: every token uses the weights
    last: bool  # left out by a pass without logits
    overlaps: bool  # on the GPU, while the CPU computes routed experts of the same layer


@dataclass
class Products:
    calls: int = 0
    flops: int = 0  # of one column that uses all of the weights
    nbytes: int = 0
    disk_bytes: int = 0  # of these
    nodes: list[dict[str, int]] = field(default_factory=list)  # of these, bytes of one tensor on each node that has any


def usage(layer: int, counts: Sequence[int], used: int) -> list[float]:
    """Of each expert of a layer, that a token chooses it; of all together `used`. One more than was counted: what was
    not seen may come. Raises PlacementError for counts that no tokens can have left."""
    most, tokens = max(counts), sum(counts) / used
    if most > tokens or not tokens:
        found = f"expert counts of layer {layer}: {sum(counts)} in all, {most} of one expert"
        limit = f"each token chooses {used} different ones, so at most {tokens:g}" if tokens else "tokens were counted"
        raise PlacementError(found, limit, "count again: hetero eval --expert-counts FILE")
    total = sum(counts) + len(counts)
    return [used * (count + 1) / total for count in counts]


class Layout:
    """Which processor computes what. `counts`: of each MoE layer, how often each expert was chosen."""

    def __init__(self, model: Model, placed: Sequence[Placed], counts: Sequence[Sequence[int]] | None = None):
        self.model, self.places = model, by_tensor(placed)
        d = model.dimensions
        self._usage: dict[int, list[float]] = {}
        for layer, row in zip(model.routed_by_layer, counts or (), strict=False):
            self._usage[layer] = usage(layer, row, d.experts_used)
        self.mla = [self._mla_place(layer) for layer in range(d.layers)]
        self.products: dict[Kind, Products] = defaultdict(Products)
        self._dense_at = {(t.layer, self.processor(t)) for t in model.by_part["dense ffn"]}
        self._shared_at = {(t.layer, self.processor(t)) for t in model.by_part["shared expert"]}
        self._cpu_layers = {layer for layer in model.routed_by_layer if len(self.gpu_experts(layer)) < d.experts}
        for part in _COMPUTED:
            for tensor in model.by_part[part]:
                if len(tensor.shape) > 1:
                    self._add(part, tensor)
        if model.tied:
            self._add("head", self._head()[0])
        for layer, tensors in model.routed_by_layer.items():
            for tensor in tensors:
                self._add_experts(layer, tensor)

    def processor(self, tensor: Tensor) -> str:
        return GPU if self.places[tensor.name][0].place == GPU else CPU

    def gpu_experts(self, layer: int) -> tuple[int, ...]:
        first = self.places[self.model.routed_by_layer[layer][0].name][0]
        if first.place != GPU:
            return ()
        return tuple(range(self.model.dimensions.experts)) if first.experts is None else first.experts

    def crossings(self) -> int:
        """How often the residual stream, or a layer's share of it, goes over PCIe in a pass."""
        at, count = CPU, 0  # the embedding is looked up by the CPU
        for layer, mla in enumerate(self.mla):
            networks = self._networks_at(layer) - {mla}
            count += (at != mla) + 2 * len(networks)
            at = mla
        return count + any(self.processor(tensor) != at for tensor in self._head())

    def _head(self) -> Sequence[Tensor]:
        return self.model.by_part["embedding"][:1] if self.model.tied else self.model.by_part["head"]

    def _networks_at(self, layer: int) -> set[str]:
        if layer not in self.model.routed_by_layer:
            return {place for at, place in self._dense_at if at == layer}
        places = {place for at, place in self._shared_at if at == layer}
        if layer in self._cpu_layers:
            places.add(CPU)
        return places | ({GPU} if self.gpu_experts(layer) else set())

    def _mla_place(self, layer: int) -> str:
        return next((self.processor(t) for t in self.model.by_part["mla"] if t.layer == layer), CPU)

    def _add(self, part: Part, tensor: Tensor) -> None:
        inside = tensor.name.split(".", 2)[-1]
        verb: Verb = "linear"
        if inside.startswith(("attn_k_b.", "attn_v_b.", "attn_kv_b.")):
            verb = "heads"
        elif part in ("shared expert", "dense ffn"):
            verb = "experts"
        is_last = tensor.layer == self.model.dimensions.layers - 1 and not inside.startswith(_PROJECTIONS)
        place = self.processor(tensor)
        overlaps = part == "shared expert" and place == GPU and tensor.layer in self._cpu_layers
        kind = Kind(part, place, verb, tensor.type, None, is_last or part == "head", overlaps)
        found = self.products[kind]
        found.calls += not inside.startswith(_SHARING_A_CALL)
        found.flops += product_flops(tensor)
        found.nbytes += tensor.nbytes
        if place == CPU:
            self._add_places(found, tensor)

    def _add_experts(self, layer: int, tensor: Tensor) -> None:
        d, chosen = self.model.dimensions, self.gpu_experts(layer)
        rest = [e for e in range(d.experts) if e not in set(chosen)] if chosen else range(d.experts)
        for place, members in ((GPU, chosen), (CPU, rest)):
            if not members:
                continue
            known = self._usage.get(layer)
            each = sum(known[e] for e in members) / len(members) if known else d.experts_used / d.experts
            overlaps = place == GPU and layer in self._cpu_layers
            kind = Kind("routed experts", place, "experts", tensor.type, each, layer == d.layers - 1, overlaps)
            found = self.products[kind]
            shares_call = "ffn_gate" not in tensor.name or (layer, place) in self._shared_at
            found.calls += not shares_call
            found.flops += product_flops(tensor) // d.experts * len(members)
            found.nbytes += tensor.nbytes // d.experts * len(members)
            if place == CPU:
                self._add_places(found, tensor)

    def _add_places(self, found: Products, tensor: Tensor) -> None:
        nodes: dict[str, int] = {}
        for one in self.places[tensor.name]:
            if one.place == DISK:
                found.disk_bytes += one.bytes
            elif one.place != GPU:
                nodes[one.place] = nodes.get(one.place, 0) + one.bytes
        found.nodes.append(nodes)
