"""Which NUMA node each part of the weights lies on: its threads read no other memory, and there is one copy of all.

Feed-forward networks are cut (cpu_kernels.gated): every node has a slot of its own. Of other matrices each node has the
rows that its threads compute. What is read row by row, as the embedding is, is spread over the nodes page by page.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cpu_kernels import Pool
from cpu_kernels.gated import cut_bytes, cuts
from cpu_kernels.pages import HUGE, Placement, allocate, bind
from cpu_kernels.product import node_groups
from hetero.arena import Slot, arena_bytes, arrange
from hetero.sizes import format_size

_GATED = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down)(_exps|_shexp|)\.weight")


def part_name(name: str, node: int) -> str:
    """Of a node's part of a tensor."""
    return f"{name}/{node}"


def split(slots: list[Slot], pool: Pool) -> list[Slot]:
    """With a slot for each node's part of a feed-forward network."""
    if len(pool.nodes) == 1:
        return slots
    down = {slot.name: slot.tensor.type for slot in slots if "ffn_down" in slot.name}
    found = list[Slot]()
    for slot in slots:
        match = _GATED.fullmatch(slot.name)
        if match:
            layer, suffix = match.groups()
            found += _parts(slot, int(layer), down[f"blk.{layer}.ffn_down{suffix}.weight"], pool)
        else:
            found.append(slot)
    return arrange(found)


def _parts(slot: Slot, layer: int, down: str, pool: Pool) -> Iterator[Slot]:
    tensor, is_down = slot.tensor, "ffn_down" in slot.name
    stack = tensor.data.reshape(-1, *tensor.data.shape[-2:])
    hidden = tensor.shape[-1] if is_down else tensor.shape[-2]
    count = len(stack if slot.experts is None else slot.experts)
    for node, cut in enumerate(cuts(pool, count, hidden, down, layer)):
        if cut is None:
            continue
        experts = None
        if slot.experts is not None:  # dealt out by their places in the list
            experts, cut = slot.experts[cut.first :: cut.step], cut._replace(first=0, step=1)
        data, column = cut_bytes(stack, tensor.type, cut, is_down)
        shape = (*data.shape[:2], cut.high - cut.low if is_down else tensor.shape[-1])
        first = data.ctypes.data - stack.ctypes.data - column
        part = replace(tensor, name=part_name(slot.name, node), shape=shape, data=data, offset=tensor.offset + first)
        yield replace(slot, name=part.name, tensor=part, column=column, node=node, experts=experts)


def new_arena(slots: list[Slot], pool: Pool) -> tuple[np.ndarray, str]:
    """Memory for slots as `split` made them, uint8; and a line about where it lies, "" on a single node."""
    size, ids = arena_bytes(slots), [node.id for node in pool.nodes]
    if len(ids) == 1:
        return allocate(size)[0], ""
    arena, placement = allocate(size, tuple(dict.fromkeys(ids)))
    page = HUGE if placement.pages == "reserved huge" else 4096
    refused, held = set(placement.refused), [0] * len(ids)
    for node, memory in _shares(slots, arena, pool):
        held[node] += memory.nbytes
        refused.add(bind(memory, ids[node], page))
    return arena, _line(held, size, Placement((), placement.pages, tuple(sorted(refused - {""}))))


def _shares(slots: list[Slot], arena: np.ndarray, pool: Pool) -> Iterator[tuple[int, np.ndarray]]:
    """The memory of each slot that belongs to one node, or the rows of each node."""
    for slot in slots:
        memory = arena[slot.start : slot.start + slot.nbytes]
        if slot.node is not None:
            yield slot.node, memory
        elif slot.layout == "x16":
            matrices, groups, group_bytes = slot.shape
            for node, (first, end) in enumerate(node_groups(pool, matrices * groups)):
                yield node, memory[first * group_bytes : end * group_bytes]


def _line(held: list[int], size: int, placement: Placement) -> str:
    each = [format_size(count + (size - sum(held)) // len(held)) for count in held]
    sizes = f"{each[0]} each" if len(set(each)) == 1 else ", ".join(each)
    where = f"weights on {len(held)} NUMA nodes, {sizes}"
    if placement.refused:
        where = f"weights are not where their {len(held)} NUMA nodes want them"
    return "; ".join([where, *placement.refused])
