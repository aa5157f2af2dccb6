"""What a plan puts on the GPU, part by part: which layers' attention, which networks, which experts, the head."""

from dataclasses import dataclass

from hetero.errors import UnsupportedError
from hetero.planning import Planned
from placement.machine import GPU
from placement.model import Part

_WITH_ATTENTION: tuple[Part, ...] = ("mla", "norms", "router")
_REMEDY = "leave the places as hetero plan made them, or make the plan with --device cpu"


@dataclass(frozen=True)
class Places:
    """Layers are the model's numbers. `tensors`: those that are on the GPU as a whole."""

    attention: int  # of the first so many layers
    networks: frozenset[int]  # layers whose dense network or shared expert is there
    experts: dict[int, tuple[int, ...]]  # of each layer that has any there: which, ascending
    head: bool
    tensors: frozenset[str]
    nbytes: int  # of weights there
    count: int  # routed experts of a layer
    routed: dict[str, int]  # their tensors, by name: the layer

    def elsewhere(self, layer: int) -> tuple[int, ...] | None:
        """Routed experts of a layer that the CPU computes; None: all of them."""
        there = self.experts.get(layer)
        return None if there is None else tuple(sorted(set(range(self.count)) - set(there)))

    def left(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor for the CPU: which experts, none of those of one that is on the GPU; None: all of it."""
        if name in self.tensors:
            return ()
        return self.elsewhere(self.routed[name]) if name in self.routed else None


def places(planned: Planned) -> Places | None:
    """None: nothing is on the GPU. UnsupportedError: an edited plan puts there what cannot be computed there."""
    model, on_gpu = planned.model, {one.name: one for one in planned.plan.tensors if one.place == GPU}
    if not on_gpu:
        return None
    parts = {part: [tensor for tensor in tensors if tensor.name in on_gpu] for part, tensors in model.by_part.items()}
    attention = sorted({tensor.layer for tensor in parts["mla"] if tensor.layer is not None})
    if attention != list(range(len(attention))) or not attention:
        shown = ", ".join(map(str, attention)) or "no layer"
        raise UnsupportedError(f"the plan puts attention of {shown} on {GPU}", "needed are the first layers", _REMEDY)
    for part in _WITH_ATTENTION:
        for tensor in model.by_part[part]:
            if tensor.layer is not None and (tensor.name in on_gpu) != (tensor.layer < len(attention)):
                raise UnsupportedError(f"the plan parts {tensor.name} from its layer's attention", "", _REMEDY)
    networks = {tensor.layer for part in ("shared expert", "dense ffn") for tensor in parts[part]}
    routed = {t.name: layer for layer, tensors in model.routed_by_layer.items() for t in tensors}
    experts = dict[int, tuple[int, ...]]()
    for tensor in parts["routed experts"]:
        chosen = on_gpu[tensor.name].experts
        experts[routed[tensor.name]] = tuple(range(model.dimensions.experts)) if chosen is None else chosen
    found = Places(
        attention=len(attention),
        networks=frozenset(layer for layer in networks if layer is not None),
        experts=experts,
        head=bool(parts["head"]),
        tensors=frozenset(on_gpu.keys() - routed.keys()),
        nbytes=sum(one.bytes for one in on_gpu.values()),
        count=model.dimensions.experts,
        routed=routed,
    )
    _check(found, planned)
    return found


def _check(found: Places, planned: Planned) -> None:
    model = planned.model
    for layer in sorted(found.networks | found.experts.keys()):
        if layer >= found.attention:
            limit = f"attention of layer {layer} is on the CPU"
            raise UnsupportedError(f"the plan puts a network of layer {layer} on {GPU}", limit, _REMEDY)
    shared = {tensor.layer for tensor in model.by_part["shared expert"]}
    for layer, experts in found.experts.items():
        if len(experts) == found.count and layer in shared and layer not in found.networks:
            limit = "its shared expert is on the CPU"
            raise UnsupportedError(f"the plan puts all routed experts of layer {layer} on {GPU}", limit, _REMEDY)
    if found.head and found.attention < model.dimensions.layers:
        raise UnsupportedError(f"the plan puts the head on {GPU}", "the last layers are on the CPU", _REMEDY)
    names = {tensor.name for part in ("embedding", "nextn", "other") for tensor in model.by_part[part]}
    for name in sorted(names & found.tensors):
        raise UnsupportedError(f"the plan puts {name} on {GPU}", "its place is on the CPU", _REMEDY)
    ends = {tensor.name for tensor in (*model.by_part["head"], *model.by_part["norms"]) if tensor.layer is None}
    if len({name in found.tensors for name in ends}) > 1 and not model.tied:
        raise UnsupportedError(f"the plan parts {' and '.join(sorted(ends))}", "they are on one side", _REMEDY)
