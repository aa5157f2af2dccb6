"""Random weights in every format: finite, of mean zero, of a given standard deviation, and as fast as a file is read.

Almost all bits of a block are random. Only its 16-bit scales are not: with one sign or the other they make the standard
deviation what it should be, and a format's minimum what centres it.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpu_kernels import Matrix, Pool, dequantize
from cpu_kernels.weight_file import OFFSET, ORIGIN, UNIT_BYTES
from hetero.gguf import GGUFFile, Tensor
from hetero.quant_types import QUANT
from hetero.weight_reader import WeightReader

FLOATS = ("F32", "F16", "BF16")
# Where a block's f16 numbers stand, and what they are for a scale of 1. IQ1_M's only one is spread over four nibbles.
HALVES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q8_0": ((0, 1.0),),
    "Q4_0": ((0, 1.0),),
    "Q4_1": ((0, 1.0), (2, -7.5)),
    "Q5_0": ((0, 1.0),),
    "Q5_1": ((0, 1.0), (2, -15.5)),
    "Q2_K": ((80, 1.0), (82, 1.5)),
    "Q3_K": ((108, 1.0),),
    "Q4_K": ((0, 1.0), (2, 7.5)),
    "Q5_K": ((0, 1.0), (2, 15.5)),
    "Q6_K": ((208, 1.0),),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S"), ((0, 1.0),)),
}
_SAMPLE = 256  # rows of a block, from which a format's standard deviation at a scale of 1 is measured


def random_rows(
    pool: Pool, rng: np.random.Generator, type: str, shape: tuple[int, int], std: float, mean: float = 0.0
) -> np.ndarray:
    """uint8 [rows, row bytes] of `shape` weights. `mean`: of F32 only."""
    if type in FLOATS:
        values = rng.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)
        if type == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype(np.float16 if type == "F16" else np.float32).view(np.uint8)
    rows, columns = shape
    scale = std / _unit(pool, type)
    return _blocks(rng, type, rows * (columns // QUANT[type][1]), scale).reshape(rows, -1)


def _blocks(rng: np.random.Generator, type: str, count: int, scale: float) -> np.ndarray:
    """uint8 [count, bytes of a block]"""
    size = QUANT[type][2]
    blocks = np.frombuffer(rng.bytes(count * size), np.uint8).reshape(count, size).copy()
    signs = np.where(blocks[:, -1] & 1, np.float32(scale), np.float32(-scale))  # of a byte that is random: enough
    if type == "IQ1_M":
        quarters = signs.astype(np.float16).view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        blocks[:, 49::2] = blocks[:, 49::2] & 15 | quarters.astype(np.uint8) << 4
        return blocks
    for offset, multiple in HALVES[type]:
        halves = (signs * np.float32(multiple)).astype(np.float16)
        blocks[:, offset : offset + 2] = halves[:, None].view(np.uint8)
    return blocks


_units: dict[str, float] = {}


def _unit(pool: Pool, type: str) -> float:
    """The standard deviation of values whose blocks have the scale 1."""
    if type not in _units:
        values = QUANT[type][1]
        sample = _blocks(np.random.default_rng(0), type, _SAMPLE * 1024 // values, 1.0).reshape(_SAMPLE, -1)
        _units[type] = float(dequantize(pool, Matrix(sample, type, 1024)).std(dtype=np.float64))
    return _units[type]


class Kind(NamedTuple):
    """Tensors whose rows are of one pattern."""

    type: str
    columns: int
    std: float
    mean: float

    @property
    def row_bytes(self) -> int:
        _, values, size = QUANT[self.type]
        return self.columns // values * size


def kind_of(name: str, type: str, shape: tuple[int, ...]) -> Kind:
    """Activations keep their size from layer to layer, and the router has no preference."""
    columns, std, mean = shape[-1], 1 / sqrt(shape[-1]), 0.0
    if "_norm." in name:
        std, mean = 0.1, 1.0
    elif name.endswith("exp_probs_b.bias"):
        std = 1e-3
    elif name == "token_embd.weight":
        std = 1.0
    elif ".attn_k_b." in name:  # lies transposed: its product sums over the latent, not over its row
        std = 1 / sqrt(shape[-2])
    elif name == "output.weight":
        std *= 2
    elif name.endswith((".attn_q.weight", ".attn_q_b.weight")):
        std *= 1.5
    return Kind(type, columns, std, mean)


PERIOD_BYTES = 16 << 20  # of a pattern, after which its rows repeat
_PATTERN_SHIFT = 44  # of an offset: above it the number of the pattern, below it a place in its endless repetition


class PatternFile(GGUFFile):
    """Stands for a file, but lies in memory, and holds one pattern of random rows for each kind of tensor.

    What the tensors' arrays say is their shape: their bytes must not be touched.
    """

    def __init__(self, name: str, tensors: Iterable[tuple[str, str, tuple[int, ...]]], pool: Pool):
        """`tensors`: name, type, shape."""
        kinds, rows = dict[Kind, int](), list[int]()
        found, nbytes = dict[str, Tensor](), 0
        for tensor, type, shape in tensors:
            kind = kind_of(tensor, type, shape)
            number = kinds.setdefault(kind, len(kinds))
            rows += [0] * (len(kinds) - len(rows))
            offset = (number << _PATTERN_SHIFT) + rows[number] * kind.row_bytes
            rows[number] += prod(shape[:-1])
            bytes_there = prod(shape[:-1]) * kind.row_bytes
            data = np.broadcast_to(np.uint8(0), (*shape[:-1], kind.row_bytes))
            found[tensor], nbytes = Tensor(tensor, shape, type, data, offset=offset), nbytes + bytes_there
        super().__init__((Path(name),), {}, _with_shapes(found), nbytes)
        self.descriptor = os.memfd_create("patterns", os.MFD_CLOEXEC)
        self.starts, self.periods = list[int](), list[int]()
        for kind, count in zip(kinds, rows, strict=True):
            self._add(pool, kind, count)

    def _add(self, pool: Pool, kind: Kind, rows: int) -> None:
        # odd: no power of two of rows, such as an expert's, is a whole number of periods
        period = min(rows, PERIOD_BYTES // kind.row_bytes) | 1
        rng = np.random.Generator(np.random.SFC64([len(self.starts)]))
        pattern = random_rows(pool, rng, kind.type, (period, kind.columns), kind.std, kind.mean).reshape(-1)
        longest = max(UNIT_BYTES, 16 * kind.row_bytes)  # of what the reader takes at once
        self.starts.append(os.fstat(self.descriptor).st_size)
        self.periods.append(pattern.size)
        os.pwrite(self.descriptor, np.resize(pattern, pattern.size + longest).tobytes(), self.starts[-1])

    @contextmanager
    def descriptors(self) -> Iterator[list[int]]:
        yield [self.descriptor]

    def fold(self, table: np.ndarray) -> None:
        """Offsets of units into the endless repetitions of patterns become those of what is there."""
        offset, origin = table[:, OFFSET // 8], table[:, ORIGIN // 8]
        pattern, at = offset >> _PATTERN_SHIFT, offset & (1 << _PATTERN_SHIFT) - 1
        folded = np.array(self.starts)[pattern] + at % np.array(self.periods)[pattern]
        origin += folded - offset
        offset[...] = folded

    def forget_patterns(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def close(self) -> None:
        self.forget_patterns()
        super().close()


def _with_shapes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With arrays that have the strides of real ones, over one stretch of memory that is never touched."""
    nothing = np.empty(max(tensor.data.size for tensor in tensors.values()), np.uint8)
    return {
        name: replace(tensor, data=nothing[: tensor.data.size].reshape(tensor.data.shape))
        for name, tensor in tensors.items()
    }


class PatternReader(WeightReader):
    """Reads patterns over and over."""

    def _table(self, arena: np.ndarray, descriptors: list[int]) -> tuple[np.ndarray, list[Matrix]]:
        table, matrices = super()._table(arena, descriptors)
        assert isinstance(self.file, PatternFile)
        self.file.fold(table)
        return table, matrices
