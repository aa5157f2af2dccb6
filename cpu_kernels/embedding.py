"""Weights as float32 values, bit for bit what the format's definition says: whole matrices, and rows for embedding."""

from typing import Any

import numpy as np

from .atomic import call_unpack, load_i64
from .jit import device, kernel
from .matrix import COLUMNS, FLAGS, ROW_STRIDE, UNPACK, Matrix, address
from .panel import FLOAT, MINIMUM
from .product import panel_bytes
from .simd import f32_from_i32, i32_from_i8, load_f32, load_i8x8, store


@device
def dequantize_row(matrix, weights, panel, target):
    """The row at address `weights` as f32; `panel`: memory for one panel row."""
    columns, flags = load_i64(matrix + COLUMNS), load_i64(matrix + FLAGS)
    if flags & FLOAT:
        call_unpack(load_i64(matrix + UNPACK), weights, columns, target)
        return
    call_unpack(load_i64(matrix + UNPACK), weights, columns, panel)
    scales, minima = panel + columns, panel + columns // 4 * 5
    for at in range(0, columns, 8):
        group = at // 16 * 4
        value = f32_from_i32(i32_from_i8(load_i8x8(panel + at))) * load_f32(scales + group)
        if flags & MINIMUM:
            value = value - load_f32(minima + group)
        store(target + 4 * at, value)


@kernel
def _dequantize(matrix, weights, rows, panel, target):
    for row in range(rows):
        at = weights + row * load_i64(matrix + ROW_STRIDE)
        dequantize_row(matrix, at, panel, target + 4 * row * load_i64(matrix + COLUMNS))


def dequantize(w: Matrix, index: int | None = None, rows: slice = slice(None)) -> np.ndarray:
    """float32 [count, rows, columns]; [rows, columns] of matrix `index`, or where the weights have two dimensions."""
    if index is not None and not 0 <= index < w.count:
        raise ValueError(f"matrix {index}; matrices 0 to {w.count - 1} exist")
    first, stop, step = rows.indices(w.rows)
    if step != 1:
        raise ValueError(f"rows {rows}: only a step of 1 is possible")
    chosen = range(w.count) if index is None else [index]
    out = np.empty((len(chosen), max(0, stop - first), w.columns), np.float32)
    panel = np.empty(panel_bytes(w.columns), np.uint8)
    base, matrix_stride, row_stride = (int(field) for field in w.descriptor[:3])
    for i, matrix in enumerate(chosen):
        at = base + matrix * matrix_stride + first * row_stride
        _dequantize(w.address, at, out.shape[1], address(panel), address(out[i]))
    return out[0] if index is not None or w.data.ndim == 2 else out


def embed(w: Matrix, ids: Any) -> np.ndarray:
    """Rows `ids`[T] of a matrix -> float32 [T, K]"""
    ids = np.asarray(ids, np.int64)
    low, high = ids.min(initial=0), ids.max(initial=0)
    if ids.ndim != 1 or low < 0 or high >= w.rows:
        raise ValueError(f"ids of shape {ids.shape} from {low} to {high}; rows 0 to {w.rows - 1} exist")
    out = np.empty((len(ids), w.columns), np.float32)
    panel = np.empty(panel_bytes(w.columns), np.uint8)
    base, row_stride = int(w.descriptor[0]), int(w.descriptor[2])
    for i, id in enumerate(ids.tolist()):
        _dequantize(w.address, base + id * row_stride, 1, address(panel), address(out) + 4 * i * w.columns)
    return out
