"""Matrix: a weight tensor in one of two layouts, with the addresses of its format's kernels.

"gguf"   the untouched bytes of the file, which may be memory-mapped; kernels interleave a few rows at a time into
         scratch memory and then do the same as with
"x16"    groups of 16 rows, interleaved (x16.py); what `interleave` makes at load
"""

import importlib
from functools import cache
from types import ModuleType

import numpy as np

from .machine import LANES

SUPPORTED = frozenset(
    {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    | {"IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M"}
)

FLOAT, X16 = 1, 2  # flags

# Offsets into a Matrix's descriptor, which compiled drivers read. BLOCKS: of a row; HALF: as in tile.Format, or -1;
# ORDER: address of the places of a block's words.
WEIGHTS, MATRIX_STRIDE, ROW_STRIDE, ROWS, COLUMNS, MULTIPLY, DEQUANTIZE, FLAGS, COUNT = range(0, 72, 8)
BLOCKS, BLOCK_BYTES, HALF, ORDER = range(72, 104, 8)


@cache
def load_format(type: str) -> ModuleType:
    """The module of a format; its kernels compile (or come from the disk cache) here, at the first use of the type."""
    if type not in SUPPORTED:
        raise ValueError(f"no kernels for weights of type {type!r}; there are for {', '.join(sorted(SUPPORTED))}")
    return importlib.import_module(f".formats.{type.lower()}", __package__)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@cache
def word_places(type: str) -> np.ndarray:
    """int64 [words]: where each word of the file's block lies in the x16 block."""
    form = load_format(type).FORMAT
    if form.VALUES == 1:
        return np.arange(4)
    places = np.array([form.place(word) for word in range(form.words())])
    if sorted(places) != list(range(form.words())):
        raise AssertionError(f"{type}: ORDER does not name every word once")
    return places


def row_groups(rows: int) -> int:
    return -(-rows // LANES)


class Matrix:
    """`count` matrices of `rows` x `columns` weights.

    As in the file: bytes [rows, row bytes] or [count, rows, row bytes], rows contiguous. `Matrix.x16`: bytes
    [count, groups, 16 x row bytes] of `rows` rows. Holds a reference to the bytes; nothing is copied.
    """

    __slots__ = ("address", "columns", "count", "data", "descriptor", "flat", "layout", "row_bytes", "rows", "type")

    def __init__(self, data: np.ndarray, type: str, columns: int):
        self._describe(type, columns)
        if data.dtype != np.uint8 or data.ndim not in (2, 3):
            raise ValueError(f"weights are {data.dtype} of {data.ndim} dimensions; uint8 of 2 or 3 are needed")
        if data.shape[-1] != self.row_bytes or data.strides[-1] != 1:
            raise ValueError(
                f"weight rows of {data.shape[-1]} bytes, step {data.strides[-1]}; {columns} values of {type} are "
                f"{self.row_bytes} contiguous bytes"
            )
        stack = data if data.ndim == 3 else data[None]
        self.flat = data.ndim == 2
        self._place(data, "gguf", stack.shape[1], (address(stack), *stack.strides[:2]), len(stack))

    @classmethod
    def x16(cls, data: np.ndarray, type: str, rows: int, columns: int, flat: bool = False) -> "Matrix":
        """Of interleaved bytes; `flat`: one matrix, whose values have two dimensions."""
        self = cls.__new__(cls)
        self._describe(type, columns)
        shape = (row_groups(rows), LANES * self.row_bytes)
        if data.dtype != np.uint8 or data.shape[1:] != shape or (data.size and data.strides[1:] != (shape[1], 1)):
            raise ValueError(f"interleaved weights are {data.dtype}{list(data.shape)}; needed is uint8[n, {shape}]")
        self.flat = flat
        self._place(data, "x16", rows, (address(data), data.strides[0], self.row_bytes), len(data))
        return self

    def _describe(self, type: str, columns: int) -> None:
        form = load_format(type).FORMAT
        if columns % form.VALUES:
            raise ValueError(f"rows of {columns} values; {type} needs a multiple of {form.VALUES}")
        self.type, self.columns = type, columns
        self.row_bytes = columns // form.VALUES * form.BYTES

    def _place(self, data: np.ndarray, layout: str, rows: int, place: tuple[int, ...], count: int) -> None:
        module = load_format(self.type)
        form = module.FORMAT
        self.data, self.layout, self.rows, self.count = data, layout, rows, count
        flags = FLOAT * (form.VALUES == 1) | X16 * (layout == "x16")
        kernels = module.multiply.address, module.dequantize.address
        half = -1 if form.HALF is None else form.HALF
        shape = self.columns // form.VALUES, form.BYTES, half, address(word_places(self.type))
        self.descriptor = np.array([*place, rows, self.columns, *kernels, flags, count, *shape], np.int64)
        self.address = address(self.descriptor)

    @property
    def nbytes(self) -> int:
        return self.count * self.rows * self.row_bytes
