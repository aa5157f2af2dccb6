"""A plan that came back from its reader, edited perhaps: checked against model and machine, predicted anew."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from placement.arrange import DISK, NOT_LOADED, Divider, node_shares
from placement.budget import budget, resolve
from placement.errors import DoesNotFit, PlacementError
from placement.machine import GPU, Machine
from placement.model import Model, Part, Tensor
from placement.plan import Placed, Plan, Settings, by_tensor
from placement.planner import Arrangement, memory_use, predicted

_REMEDY = "correct the plan, or make a new one with hetero plan --json"
_ON_ONE: dict[Part, str] = {
    "mla": "the matrices of attention",
    "shared expert": "gate, up and down of the shared experts",
    "dense ffn": "gate, up and down of the dense network",
}


def replan(document: Any, model: Model, machine: Machine) -> Plan:
    """The plan of a document that `Plan.to_json` made: its settings and places, everything else computed anew.

    Raises InvalidDocument where it is no plan, PlacementError where it is none for this model, DoesNotFit where a
    memory is too small for what was put there.
    """
    plan = Plan.from_json(document)
    settings = resolve(model, machine, plan.settings)
    check_places(model, machine, plan.tensors)
    check_settings(model, plan, settings)
    needs = budget(model, machine, settings)
    gpu_layers = _gpu_layers(model, by_tensor(plan.tensors))
    uses_gpu = any(one.place == GPU for one in plan.tensors)
    limits = dict(zip((node.name for node in machine.nodes), needs.nodes, strict=True)) | {GPU: needs.vram}
    others = {GPU: [gpu_layers * needs.cache_layer, needs.gpu_buffers]} if uses_gpu else {}
    refuse_overfull(memory_use(machine, limits, plan.tensors, others))
    cache = (model.dimensions.layers - gpu_layers) * needs.cache_layer
    buffers = needs.cpu_buffers_beside_gpu if uses_gpu else needs.cpu_buffers
    room = [use.free_bytes for use in memory_use(machine, limits, plan.tensors, {}) if use.name in _names(machine)]
    if cache + buffers > sum(room):
        found = f"cache and working memory need {_gib(cache + buffers)} of DRAM beside the weights"
        raise DoesNotFit(found, f"{_gib(sum(room))} are left", _REMEDY)
    for node, pair in _on_nodes(plan, machine, room, cache, buffers).items():
        others[node] = pair
    mapped = plan.mode == "mmap" or _disk_bytes(model, plan.tensors) > 0
    memories = memory_use(machine, limits, plan.tensors, others)
    return predicted(model, machine, settings, Arrangement("mmap" if mapped else "resident", memories, plan.tensors))


def refuse_overfull(memories: Sequence[Any]) -> None:
    for use in memories:
        if use.free_bytes < 0:
            parts = f"{_gib(use.weight_bytes)} of weights, {_gib(use.kv_bytes)} of cache, {_gib(use.buffer_bytes)}"
            remedy = f"move {_gib(-use.free_bytes)} elsewhere"
            raise DoesNotFit(f"{use.name} is to hold {parts} of buffers", f"it has room for {_gib(use.bytes)}", remedy)


def check_places(model: Model, machine: Machine, placed: Sequence[Placed]) -> None:
    """Every tensor, all its bytes, in places that exist; whole where it must be."""
    known = {memory.name for memory in machine.memories} | {DISK}
    names, counts = {tensor.name for tensor in model.tensors}, Counter(one.name for one in placed)
    for name in sorted(counts.keys() ^ names):
        where = "is in the plan only" if name in counts else "is in the model only"
        raise _wrong(name, where, f"a plan has each of the {len(names)} tensors of {model.name}, and no other")
    for name, count in counts.items():
        if count > len(known):
            raise _wrong(name, f"is in {count} places", f"this machine has {', '.join(sorted(known))}")
    found = by_tensor(placed)
    routed = {tensor.name for tensor in model.by_part["routed experts"]}
    for tensor in model.tensors:
        parts = found[tensor.name]
        places = [one.place for one in parts]
        for place in places:
            if place not in known:
                raise _wrong(tensor.name, f"is in {place!r:.40}", f"this machine has {', '.join(sorted(known))}")
        if len(set(places)) < len(places):
            raise _wrong(tensor.name, "is twice in one place", "what one memory holds of it is one entry")
        if sum(one.bytes for one in parts) != tensor.nbytes:
            size = sum(one.bytes for one in parts)
            raise _wrong(tensor.name, f"has {size} bytes in the plan", f"it has {tensor.nbytes} bytes in the model")
        if GPU in places and len(places) > 1 and tensor.name not in routed:
            raise _wrong(tensor.name, "is divided between the GPU and other places", "only routed experts may be")
        _check_experts(model, tensor, parts, tensor.name in routed)
    _check_layers(model, found)


def check_settings(model: Model, plan: Plan, settings: Settings) -> None:
    """What was asked for is what the places are. `settings`: the plan's, resolved."""
    there, disk = sum(one.bytes for one in plan.tensors if one.place == GPU), _disk_bytes(model, plan.tensors)
    if settings.device == "cpu" and there:
        limit = f"its tensors put {there:,} bytes on {GPU}"
        raise PlacementError("the plan's settings.device is 'cpu'", limit, _REMEDY)
    if settings.device == "cuda" and not there:
        raise PlacementError("the plan's settings.device is 'cuda'", f"none of its tensors is on {GPU}", _REMEDY)
    if settings.mmap is False and disk:
        limit = f"its tensors leave {disk:,} bytes on the {DISK}"
        raise PlacementError("the plan's settings.mmap is false", limit, _REMEDY)
    if settings.mmap not in (None, plan.mode == "mmap"):
        found = f"the plan's settings.mmap is {str(settings.mmap).lower()}"
        raise PlacementError(found, f"its mode is {plan.mode!r}", _REMEDY)
    count = gpu_experts(model, by_tensor(plan.tensors))
    if settings.gpu_experts not in (None, count):
        found, limit = f"the plan's settings.gpu_experts is {settings.gpu_experts}", f"{count} experts are on {GPU}"
        raise PlacementError(found, limit, _REMEDY)


def gpu_experts(model: Model, found: dict[str, tuple[Placed, ...]]) -> int:
    """Routed experts on the GPU, each one of one layer."""
    count = 0
    for tensors in model.routed_by_layer.values():
        there = [one for one in found[tensors[0].name] if one.place == GPU]
        count += sum(model.dimensions.experts if one.experts is None else len(one.experts) for one in there)
    return count


def _disk_bytes(model: Model, placed: Sequence[Placed]) -> int:
    """Those aside that no pass reads."""
    not_loaded = {tensor.name for part in NOT_LOADED for tensor in model.by_part[part]}
    return sum(one.bytes for one in placed if one.place == DISK and one.name not in not_loaded)


def _check_experts(model: Model, tensor: Tensor, parts: Sequence[Placed], routed: bool) -> None:
    for one in parts:
        if one.place == GPU and one.experts is None and one.bytes < tensor.nbytes:
            raise _wrong(tensor.name, "is on the GPU in part: which experts is not said", "its `experts` lists them")
        if one.experts is None:
            continue
        if one.place != GPU or not routed:
            raise _wrong(tensor.name, "lists experts", "only routed experts on the GPU are listed")
        count = len(one.experts)
        if sorted(set(one.experts)) != list(one.experts) or one.experts[-1:] > (model.dimensions.experts - 1,):
            limit = f"they ascend, from 0 to at most {model.dimensions.experts - 1}"
            raise _wrong(tensor.name, "lists experts twice, in disorder, or such as there are none", limit)
        size = tensor.nbytes // model.dimensions.experts
        if one.bytes != size * count:
            limit = f"an expert has {size} bytes, and {count} are listed"
            raise _wrong(tensor.name, f"has {one.bytes} bytes on the GPU", limit)


def _check_layers(model: Model, found: dict[str, tuple[Placed, ...]]) -> None:
    """A layer's attention is on one processor, and the three matrices of a network are: one kernel multiplies them."""
    for layer, tensors in model.routed_by_layer.items():
        there = [[one.experts for one in found[tensor.name] if one.place == GPU] for tensor in tensors]
        if any(one != there[0] for one in there):
            name = f"blk.{layer}.ffn_*_exps.weight"
            raise _wrong(name, "is on the GPU with different experts", "gate, up and down have the same")
    for part, whole in _ON_ONE.items():
        where: dict[int | None, Tensor] = {}
        for tensor in model.by_part[part]:
            first = where.setdefault(tensor.layer, tensor)
            places = [found[one.name][0].place for one in (tensor, first)]
            if places.count(GPU) == 1:
                limit = f"{first.name} is on {places[1]}; {whole} of a layer are on one processor"
                raise _wrong(tensor.name, f"is on {places[0]}", limit)


def _gpu_layers(model: Model, found: dict[str, tuple[Placed, ...]]) -> int:
    """Layers whose attention, and with it the cache, is on the GPU."""
    return len({tensor.layer for tensor in model.by_part["mla"] if found[tensor.name][0].place == GPU})


def _on_nodes(plan: Plan, machine: Machine, room: list[int], cache: int, buffers: int) -> dict[str, list[int]]:
    """Cache and buffers of each node: as the plan has them, if it still can."""
    names = [node.name for node in machine.nodes]
    there = {use.name: [use.kv_bytes, use.buffer_bytes] for use in plan.memories if use.name in names}
    sums = [sum(column) for column in zip(*there.values(), strict=True)]
    fits = all(sum(pair) <= size for pair, size in zip(there.values(), room, strict=False))
    if list(there) == names and sums == [cache, buffers] and fits:
        return there
    cut = Divider(node_shares(cache + buffers, room, [node.read_bandwidth for node in machine.nodes]))
    return {name: list(pair) for name, *pair in zip(names, cut.take(cache), cut.take(buffers), strict=True)}


def _names(machine: Machine) -> set[str]:
    return {node.name for node in machine.nodes}


def _wrong(tensor: str, problem: str, limit: str) -> PlacementError:
    return PlacementError(f"the plan's tensor {tensor!r:.100} {problem}", limit, _REMEDY)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
