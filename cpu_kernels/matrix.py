"""Matrix: a weight tensor as the GGUF file holds it, with the addresses of its format's kernels. Nothing is copied."""

import importlib
from functools import cache
from types import ModuleType

import numpy as np

from .panel import FLOAT, MINIMUM

SUPPORTED = frozenset(
    {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    | {"IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M"}
)

# Offsets into a Matrix's descriptor, which compiled drivers read.
WEIGHTS, MATRIX_STRIDE, ROW_STRIDE, ROWS, COLUMNS, DOT, UNPACK, FLAGS, COUNT = range(0, 72, 8)


@cache
def load_format(type: str) -> ModuleType:
    """The module of a format; its kernels compile (or come from the disk cache) here, at the first use of the type."""
    if type not in SUPPORTED:
        raise ValueError(f"no kernels for weights of type {type!r}; there are for {', '.join(sorted(SUPPORTED))}")
    return importlib.import_module(f".formats.{type.lower()}", __package__)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class Matrix:
    """`count` matrices of `rows` x `columns` weights: bytes [rows, row bytes] or [count, rows, row bytes]."""

    __slots__ = ("address", "columns", "count", "data", "descriptor", "rows", "type")

    def __init__(self, data: np.ndarray, type: str, columns: int):
        form = load_format(type)
        if data.dtype != np.uint8 or data.ndim not in (2, 3):
            raise ValueError(f"weights are {data.dtype} of {data.ndim} dimensions; uint8 of 2 or 3 are needed")
        if columns % form.VALUES:
            raise ValueError(f"rows of {columns} values; {type} needs a multiple of {form.VALUES}")
        row_bytes = columns // form.VALUES * form.BYTES
        if data.shape[-1] != row_bytes or data.strides[-1] != 1:
            raise ValueError(
                f"weight rows of {data.shape[-1]} bytes, step {data.strides[-1]}; {columns} values of {type} are "
                f"{row_bytes} contiguous bytes"
            )
        stack = data if data.ndim == 3 else data[None]
        self.data, self.type, self.columns = data, type, columns
        self.count, self.rows = stack.shape[:2]
        self.descriptor = np.array(
            [
                address(stack),
                stack.strides[0],
                stack.strides[1],
                self.rows,
                columns,
                form.dot.address,
                form.unpack.address,
                FLOAT * form.FLOAT | MINIMUM * form.MINIMUM,
                self.count,
            ],
            np.int64,
        )
        self.address = address(self.descriptor)
