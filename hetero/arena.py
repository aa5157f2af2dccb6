"""The arena: one stretch of memory, or of a file, with every tensor of a model in the layout its kernels like best."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from cpu_kernels.matrix import LANES, row_groups
from hetero.config import ModelConfig
from hetero.gguf import GGUFFile, Tensor

ALIGNMENT = 4096  # of a tensor


@dataclass(frozen=True)
class Slot:
    """Where a tensor goes. `name` is its own, or output.weight where the head is the embedding once more."""

    name: str
    tensor: Tensor  # as in the file
    layout: str
    start: int = 0  # byte of the arena
    column: int = 0  # byte of the file's rows with which this part of a tensor begins
    node: int | None = None  # index of the NUMA node whose part it is
    experts: tuple[int, ...] | None = None  # of the tensor's, those that it holds; None: all

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its bytes, uint8; "x16": [matrices, groups, 16 x bytes of a row]"""
        if self.layout == "gguf":
            return self.tensor.data.shape
        *stack, rows, row_bytes = self.tensor.data.shape
        count = prod(stack) if self.experts is None else len(self.experts)
        return count, row_groups(rows), LANES * row_bytes

    @property
    def nbytes(self) -> int:
        return prod(self.shape)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """What it is read from, (offset, bytes) of the file."""
        tensor = self.tensor
        if self.experts is None:
            return [(tensor.offset, tensor.nbytes)]
        size = tensor.nbytes // tensor.shape[0]
        return [(tensor.offset + first * size, (end - first) * size) for first, end in stretches(self.experts)]


Left = Callable[[str], tuple[int, ...] | None]


def plan(file: GGUFFile, config: ModelConfig, left: Left = lambda name: None) -> list[Slot]:
    """A slot for each tensor of the main model, in the order of the file; multi-token-prediction layers stay there.

    `left(name)`: which experts of a tensor are left for the arena, none of those of one that goes elsewhere as a whole;
    None: all of the tensor.
    """
    skipped = tuple(f"blk.{i}." for i in range(config.layers, config.layers + config.nextn_layers))
    slots = list[Slot]()
    for name, tensor in sorted(file.tensors.items(), key=lambda item: (item[1].file, item[1].offset)):
        experts = left(name)
        if name.startswith(skipped) or experts == ():
            continue
        layouts = {name: _layout(name, tensor, config)}
        if name == "token_embd.weight" and "output.weight" not in file.tensors:
            layouts["output.weight"] = "x16"
        slots += [Slot(target, tensor, layout, experts=experts) for target, layout in layouts.items()]
    return arrange(slots)


def stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Of ascending numbers, [first, end) of those without gaps between them."""
    first = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield numbers[first], numbers[i - 1] + 1
            first = i


def arrange(slots: list[Slot]) -> list[Slot]:
    """One after the other."""
    arranged, end = list[Slot](), 0
    for slot in slots:
        arranged.append(replace(slot, start=end))
        end += -(-slot.nbytes // ALIGNMENT) * ALIGNMENT
    return arranged


def _layout(name: str, tensor: Tensor, config: ModelConfig) -> str:
    if len(tensor.shape) == 1 or name == "token_embd.weight":  # rows of the embedding are looked up one by one
        return "gguf"
    if name.endswith(".attn_kv_b.weight") and (config.nope_dim % LANES or config.value_dim % LANES):
        return "gguf"  # its halves are not whole groups
    return "x16"


def arena_bytes(slots: list[Slot]) -> int:
    return slots[-1].start + slots[-1].nbytes


def place(slots: list[Slot], arena: np.ndarray, path: Path | None = None) -> dict[str, Tensor]:
    """The tensors as they lie in the arena, uint8 [arena_bytes], which is memory or the mapped file `path`."""
    tensors = {}
    for slot in slots:
        data = arena[slot.start : slot.start + slot.nbytes].reshape(slot.shape)
        shape = slot.tensor.shape if slot.experts is None else (len(slot.experts), *slot.tensor.shape[-2:])
        tensors[slot.name] = replace(slot.tensor, name=slot.name, shape=shape, data=data, layout=slot.layout, path=path)
    return tensors
