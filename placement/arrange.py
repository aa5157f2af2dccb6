"""Who gets which bytes: VRAM filled from the top of the intensity order, then DRAM, then disk."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from placement.model import Model, Part, Tensor
from placement.plan import Placed, Settings

DISK = "disk"
# FLOP per byte of weights read, per token. Norms and routers, which are small, go with their layer's MLA.
INTENSITY: tuple[Part, ...] = ("mla", "shared expert", "dense ffn", "head", "routed experts")
_WITH_MLA: tuple[Part, ...] = ("mla", "norms", "router")
_NETWORKS: tuple[Part, ...] = ("shared expert", "dense ffn")
# of what a processor computes, in the order in which DRAM keeps it where not all fits
_KEPT: tuple[Part, ...] = ("norms", "router", "mla", "shared expert", "dense ffn", "head", "embedding")
_KEPT_LAST: Part = "routed experts"
NOT_LOADED: tuple[Part, ...] = ("nextn", "other")  # stay in the file


@dataclass(frozen=True)
class Unit:
    """What goes to the GPU together, or not at all."""

    part: Part
    tensors: tuple[Tensor, ...]
    has_cache: bool = False  # and a layer's cache with it

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass
class OnGpu:
    """What VRAM holds, and how much of it is free."""

    free: int  # bytes, KV of promised contexts and buffers taken off
    tensors: set[str] = field(default_factory=set)
    cached_layers: int = 0
    experts: dict[int, tuple[int, ...]] = field(default_factory=dict)  # layer -> experts, ascending
    complete: bool = True  # all of the dense parts are there


def dense_units(model: Model) -> Iterator[Unit]:
    """By intensity, then by layer; the head comes with the last norm. A tied head stays on the CPU."""
    of_layer: dict[tuple[Part, int | None], list[Tensor]] = {}
    for part in (*_WITH_MLA, *_NETWORKS):
        for tensor in model.by_part[part]:
            of_layer.setdefault((part, tensor.layer), []).append(tensor)
    for layer in range(model.dimensions.layers):
        members = [tensor for part in _WITH_MLA for tensor in of_layer.get((part, layer), ())]
        yield Unit("mla", tuple(members), has_cache=True)
    for part in _NETWORKS:
        for layer in range(model.dimensions.layers):
            if (part, layer) in of_layer:
                yield Unit(part, tuple(of_layer[part, layer]))
    if not model.tied:
        yield Unit("head", (*model.by_part["head"], *of_layer.get(("norms", None), ())))


def expert_order(model: Model, settings: Settings) -> Iterator[tuple[int, int]]:
    """(layer, expert), the first to go to the GPU first: layer by layer, or, where counts are given, the most used."""
    experts = range(model.dimensions.experts)
    layers = model.routed_by_layer
    order = [(layer, expert) for layer in layers for expert in experts]
    if settings.expert_counts is not None:
        counts = dict(zip(layers, settings.expert_counts, strict=True))
        order.sort(key=lambda one: -counts[one[0]][one[1]])  # stable
    return iter(order)


def expert_bytes(model: Model) -> dict[int, int]:
    """Layer -> bytes of one routed expert."""
    experts = model.dimensions.experts
    return {layer: sum(t.nbytes for t in tensors) // experts for layer, tensors in model.routed_by_layer.items()}


def fill_gpu(model: Model, settings: Settings, room: int, cache_layer: int) -> OnGpu:
    """`room`: bytes of VRAM without buffers; `cache_layer`: of the cache of one layer. Stops where something does not
    fit: nothing of lower intensity is there while something of higher intensity is not."""
    gpu = OnGpu(room)
    for unit in dense_units(model):
        needed = unit.nbytes + cache_layer * unit.has_cache
        if needed > gpu.free:
            gpu.complete = False
            return gpu
        gpu.free -= needed
        gpu.tensors |= {tensor.name for tensor in unit.tensors}
        gpu.cached_layers += unit.has_cache
    _add_experts(gpu, model, settings)
    return gpu


def _add_experts(gpu: OnGpu, model: Model, settings: Settings) -> None:
    sizes, found = expert_bytes(model), dict[int, list[int]]()
    for layer, expert in islice(expert_order(model, settings), settings.gpu_experts):
        if sizes[layer] > gpu.free:
            break
        gpu.free -= sizes[layer]
        found.setdefault(layer, []).append(expert)
    gpu.experts = {layer: tuple(sorted(experts)) for layer, experts in sorted(found.items())}


@dataclass(frozen=True)
class Rest:
    """What is left of a tensor for DRAM and disk."""

    tensor: Tensor
    part: Part
    nbytes: int


def rest_of(model: Model, gpu: OnGpu) -> list[Rest]:
    """All that is not on the GPU, in the order in which DRAM keeps it."""
    found = []
    for part in (*_KEPT, _KEPT_LAST):
        for tensor in model.by_part[part]:
            if tensor.name in gpu.tensors:
                continue
            taken = 0
            if part == "routed experts":
                assert tensor.layer is not None
                taken = tensor.nbytes // model.dimensions.experts * len(gpu.experts.get(tensor.layer, ()))
            if taken < tensor.nbytes:
                found.append(Rest(tensor, part, tensor.nbytes - taken))
    return found


def in_memory(rest: Iterable[Rest], room: int) -> dict[str, int]:
    """Tensor -> bytes of it that `room` bytes of DRAM hold: dense parts first, then as much of every expert."""
    rest, kept = list(rest), dict[str, int]()
    routed = sum(one.nbytes for one in rest if one.part == "routed experts")
    for one in rest:
        if one.part != "routed experts":
            kept[one.tensor.name] = min(one.nbytes, room)
            room -= kept[one.tensor.name]
    share = min(room, routed)
    for one in rest:
        if one.part == "routed experts":
            kept[one.tensor.name] = one.nbytes * share // max(routed, 1)
    return kept


def even_shares(needed: int, bandwidths: list[float]) -> list[int]:
    """As a load divides them: every node holds what its threads compute, and its bandwidth is in proportion to them."""
    return node_shares(needed, [needed] * len(bandwidths), bandwidths)


def fits_nodes(needed: int, capacities: Sequence[int], bandwidths: list[float]) -> bool:
    """Whether each node has room for its even share."""
    shares = even_shares(needed, bandwidths)
    return all(share <= capacity for share, capacity in zip(shares, capacities, strict=True))


def node_shares(needed: int, capacities: list[int], bandwidths: list[float]) -> list[int]:
    """`needed` bytes over nodes in proportion to their bandwidths, as far as their capacities allow."""
    shares, open_nodes = [0] * len(capacities), [i for i, size in enumerate(capacities) if size]
    left = needed
    while left and open_nodes:
        total = sum(bandwidths[i] for i in open_nodes)
        full = [i for i in open_nodes if left * bandwidths[i] / total >= capacities[i] - shares[i]]
        if not full:
            wanted = [int(left * bandwidths[i] / total) for i in open_nodes]
            odd = left - sum(wanted)  # bytes lost by rounding down, less than there are nodes
            for at, (i, size) in enumerate(zip(open_nodes, wanted, strict=True)):
                shares[i] += size + (at < odd)
            left = 0
        for i in full:
            left -= capacities[i] - shares[i]
            shares[i] = capacities[i]
            open_nodes.remove(i)
    assert left <= 0 <= min(shares), f"{needed} bytes over nodes of {capacities}"
    return shares


class Divider:
    """Divides one thing after the other over the nodes, so that all together meet the shares exactly."""

    def __init__(self, shares: list[int]):
        self._left = list(shares)

    def take(self, size: int) -> list[int]:
        """Bytes on each node."""
        total = sum(self._left)
        taken = [size * left // max(total, 1) for left in self._left]
        for i in sorted(range(len(taken)), key=lambda i: taken[i] - self._left[i]):  # most room first
            more = min(size - sum(taken), self._left[i] - taken[i])
            taken[i] += more
        self._left = [left - part for left, part in zip(self._left, taken, strict=True)]
        return taken


def placed_tensors(model: Model, gpu: OnGpu, kept: dict[str, int], nodes: list[str], cut: Divider) -> list[Placed]:
    """Every tensor of the model, in the order of its list."""
    found = []
    not_loaded = {tensor.name for part in NOT_LOADED for tensor in model.by_part[part]}
    routed = {tensor.name for tensor in model.by_part["routed experts"]}
    for tensor in model.tensors:
        name, left = tensor.name, tensor.nbytes
        if name in not_loaded:
            found.append(Placed(name, DISK, left))
            continue
        if name in gpu.tensors:
            found.append(Placed(name, "gpu0", left))
            continue
        chosen = gpu.experts.get(tensor.layer or 0, ()) if name in routed else ()
        if chosen:
            size = tensor.nbytes // model.dimensions.experts * len(chosen)
            found.append(Placed(name, "gpu0", size, chosen if size < left else None))
            left -= size
        parts = cut.take(kept.get(name, 0))
        found += [Placed(name, node, size) for node, size in zip(nodes, parts, strict=True) if size]
        if left > sum(parts):
            found.append(Placed(name, DISK, left - sum(parts)))
    return found
