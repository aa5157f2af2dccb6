"""One stretch of memory with every tensor the model needs, in the layout its kernels like best, and the way into it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from cpu_kernels import Matrix, Pool
from cpu_kernels.arrange import interleave_groups
from cpu_kernels.pages import allocate
from hetero.config import ModelConfig
from hetero.gguf import GGUFFile, Tensor

ALIGNMENT = 4096
PIECE_BYTES = 64 << 20
ROWS = 16  # of a group


@dataclass(frozen=True)
class Slot:
    """Where a tensor goes. `name` is its own, or output.weight for a head that is the embedding."""

    name: str
    tensor: Tensor  # as in the file
    layout: str
    start: int  # byte of the arena

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the bytes, uint8."""
        if self.layout == "gguf":
            return self.tensor.data.shape
        *stack, rows, row_bytes = self.tensor.data.shape
        return prod(stack), -(-rows // ROWS), ROWS * row_bytes


def plan(file: GGUFFile, config: ModelConfig) -> list[Slot]:
    """A slot for each tensor of the main model, in the order of the file."""
    skipped = tuple(f"blk.{i}." for i in range(config.layers, config.layers + config.nextn_layers))
    slots, end = list[Slot](), 0
    for name, tensor in file.tensors.items():
        if name.startswith(skipped):
            continue
        layouts = {name: _layout(name, tensor, config)}
        if name == "token_embd.weight" and "output.weight" not in file.tensors:
            layouts["output.weight"] = "x16"
        for target, layout in layouts.items():
            slot = Slot(target, tensor, layout, end)
            slots.append(slot)
            end += -(-prod(slot.shape) // ALIGNMENT) * ALIGNMENT
    return slots


def _layout(name: str, tensor: Tensor, config: ModelConfig) -> str:
    if len(tensor.shape) == 1 or name == "token_embd.weight":  # rows of the embedding are looked up one by one
        return "gguf"
    if name.endswith(".attn_kv_b.weight") and (config.nope_dim % ROWS or config.value_dim % ROWS):
        return "gguf"  # its heads are not whole groups
    return "x16"


def arena_bytes(slots: list[Slot]) -> int:
    return slots[-1].start + prod(slots[-1].shape)


def place(slots: list[Slot], arena: np.ndarray) -> dict[str, Tensor]:
    """The tensors as they lie in the arena."""
    tensors = {}
    for slot in slots:
        data = arena[slot.start : slot.start + prod(slot.shape)].reshape(slot.shape)
        tensors[slot.name] = replace(slot.tensor, name=slot.name, data=data, layout=slot.layout)
    return tensors


def rearrange(
    file: GGUFFile, config: ModelConfig, pool: Pool, progress: Callable[[str, int, int], None]
) -> dict[str, Tensor]:
    """Reads every tensor of the main model into new memory."""
    slots = plan(file, config)
    tensors = place(slots, allocate(arena_bytes(slots))[0])
    total, done = sum(slot.tensor.nbytes for slot in slots), 0
    for slot in slots:
        for part in _fill(slot.tensor, tensors[slot.name], pool):
            done += part
            progress("reading weights", done, total)
    return tensors


def _fill(source: Tensor, target: Tensor, pool: Pool) -> Iterator[int]:
    """Bytes of the file done, piece by piece."""
    if target.layout == "gguf":
        flat, out = source.data.reshape(-1), target.data.reshape(-1)
        for at in range(0, flat.size, PIECE_BYTES):
            out[at : at + PIECE_BYTES] = flat[at : at + PIECE_BYTES]
            yield len(flat[at : at + PIECE_BYTES])
        return
    matrix = Matrix(source.data.reshape(-1, *source.data.shape[-2:]), source.type, source.shape[-1])
    groups = target.data.shape[0] * target.data.shape[1]
    step = max(1, PIECE_BYTES // target.data.shape[2])
    for first in range(0, groups, step):
        count = min(step, groups - first)
        interleave_groups(pool, matrix, target.data, first, count)
        yield source.nbytes * (first + count) // groups - source.nbytes * first // groups
