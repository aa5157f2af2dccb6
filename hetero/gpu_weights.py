"""From a file's tensors to matrices on a GPU: read by the pool's threads, through a bounded buffer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from cpu_kernels import Pool
from cpu_kernels.weight_file import units, working_memory
from hetero.arena import stretches
from hetero.attention import KvUp
from hetero.config import ModelConfig
from hetero.gguf import GGUFFile, Tensor
from hetero.gpu_side import GpuSide
from hetero.linear import Linear
from hetero.weight_reader import read

STAGE = "reading weights for the GPU"
BUFFER_BYTES = 64 << 20  # rows of a tensor pass through it
Fold = Callable[[np.ndarray], None]


class Source(NamedTuple):
    """`tensors`: as they lie in the file. `fold`: as PatternFile.fold, of a file that is not one."""

    file: GGUFFile
    tensors: Mapping[str, Tensor]
    fold: Fold | None = None


class VramReader:
    """`total`: bytes that will be read."""

    def __init__(
        self, source: Source, pool: Pool, side: GpuSide, total: int, progress: Callable[[str, int, int], None]
    ):
        self.file, self.tensors, self._fold = source
        self.pool, self.side = pool, side
        self._progress, self._done, self._total = progress, 0, total
        self._buffer = np.empty(BUFFER_BYTES, np.uint8)

    def whole(self, name: str) -> np.ndarray:
        """uint8 [..., row bytes] of a tensor that is not large."""
        tensor = self.tensors[name]
        data = np.empty(tensor.data.shape, np.uint8)
        self._read(tensor, 0, data.reshape(-1))
        return data

    def matrix(self, name: str, experts: Sequence[int] | None = None) -> Any:
        """A tensor's matrix, or matrices; `experts`: only these of them."""
        tensor, verbs = self.tensors[name], self.side.verbs
        *stack, rows, columns = tensor.shape
        numbers = range(prod(stack)) if experts is None else experts
        matrix = verbs.Matrix(self.side.device, tensor.type, rows, columns, len(numbers) if stack else None)
        at = 0
        for first, end in stretches(numbers):
            for part in self._parts(tensor, first * rows, end * rows):
                matrix.write(part, at)
                at += len(part)
        return matrix

    def _parts(self, tensor: Tensor, first: int, end: int) -> Iterator[np.ndarray]:
        """uint8 [n, row bytes]: rows `first` to `end` of all matrices of a tensor, in a buffer that is used again."""
        row_bytes = tensor.data.shape[-1]
        step = max(1, BUFFER_BYTES // row_bytes)
        for start in range(first, end, step):
            count = min(step, end - start)
            part = self._buffer[: count * row_bytes]
            self._read(tensor, start * row_bytes, part)
            yield part.reshape(count, row_bytes)

    def _read(self, tensor: Tensor, start: int, out: np.ndarray) -> None:
        with self.file.descriptors() as descriptors:
            table = units(descriptors[tensor.file], tensor.offset + start, None, out)
            if self._fold is not None:
                self._fold(table)
            read(self.file, self.pool, descriptors, table, working_memory(self.pool, table), [])
        self._done += out.size
        self._progress(STAGE, self._done, self._total)


class GpuWeights:
    """The tensors of a model, read as they are bound to the GPU's verbs."""

    def __init__(self, reader: VramReader):
        self.reader, self.side = reader, reader.side

    def vector(self, name: str) -> torch.Tensor:
        """float32 [n]"""
        return self.side.copy(self.reader.whole(name).view(np.float32).reshape(-1))

    def linear(self, *names: str) -> Linear:
        """One product for matrices with the same input, side by side."""
        return Linear(self.side, *(self.reader.matrix(name) for name in names))

    def gated(self, layer: int, suffix: str) -> Any:
        """A dense network or a shared expert."""
        return self.side.verbs.Gated(*(self.reader.matrix(name) for name in gated_names(layer, suffix)))

    def resident(self, layer: int, experts: tuple[int, ...], count: int) -> Any:
        """These of a layer's `count` routed experts."""
        matrices = (self.reader.matrix(name, experts) for name in gated_names(layer, "_exps"))
        return self.side.verbs.Resident(*matrices, experts, count)

    def kv_up(self, prefix: str, config: ModelConfig) -> KvUp:
        if config.kv_b_split:
            k_b, v_b = (self.reader.matrix(f"{prefix}attn_{part}_b.weight") for part in "kv")
            return KvUp(k_b, v_b, True)
        name, keys = prefix + "attn_kv_b.weight", config.nope_dim
        tensor = self.reader.tensors[name]  # rows: for each head N of keys, then V of values
        heads = self.reader.whole(name).reshape(config.heads, keys + config.value_dim, -1)
        make, rest = self.side.verbs.Matrix.from_gguf, (tensor.type, tensor.shape[-1])
        return KvUp(
            make(self.side.device, heads[:, :keys], *rest), make(self.side.device, heads[:, keys:], *rest), False
        )


def gated_names(layer: int, suffix: str) -> list[str]:
    return [f"blk.{layer}.ffn_{part}{suffix}.weight" for part in ("gate", "up", "down")]
