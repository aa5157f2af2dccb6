"""Linear verbs on untouched GGUF blocks. T tokens, H heads, K columns in, M rows out; activations float32."""

from typing import Any

import numpy as np

from .atomic import call_unpack, fetch_add, load_i64, store_i64
from .jit import device, job, kernel
from .matrix import Matrix, address
from .panel import FLOAT, MINIMUM, panel_row_bytes
from .pool import Pool
from .product import (
    PRODUCT_BYTES,
    column_space,
    describe,
    panel_bytes,
    run_products,
    run_quantize,
)
from .simd import fma, load_f32, load_i8, store

ARGUMENT_BYTES = 64


def check_rows(name: str, x: np.ndarray, shape: tuple[int, ...]) -> None:
    """A float32 array of this shape whose last axis is contiguous."""
    if x.dtype != np.float32 or x.shape != shape or (x.strides[-1] != 4 and x.size):
        raise ValueError(f"{name} is {x.dtype}{list(x.shape)} with strides {x.strides}; needed is float32{list(shape)}")


def result(out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """`out` if it fits, or a new array."""
    if out is None:
        return np.empty(shape, np.float32)
    if out.dtype != np.float32 or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out is {out.dtype}{list(out.shape)}; needed is a C-contiguous float32{list(shape)}")
    return out


@kernel
def _linear(control, work, matrix, x, token_stride, head_stride, out, tokens):
    heads, rows, columns = load_i64(matrix + 64), load_i64(matrix + 24), load_i64(matrix + 32)
    pairs = heads * tokens
    products = work + ARGUMENT_BYTES
    sources = products + heads * PRODUCT_BYTES
    targets, results = sources + 8 * pairs, sources + 16 * pairs
    columns_at = (sources + 24 * pairs + 63) & -64
    size = column_space(columns)
    for head in range(heads):
        for token in range(tokens):
            at = 8 * (head * tokens + token)
            store_i64(sources + at, x + token * token_stride + head * head_stride)
            store_i64(targets + at, columns_at + (head * tokens + token) * size)
            store_i64(results + at, out + (token * heads + head) * rows * 4)
    panels = columns_at
    if load_i64(matrix + 56) & FLOAT:
        targets = sources
    else:
        run_quantize(control, work, pairs, columns, sources, targets)
        panels = (columns_at + pairs * size + 63) & -64
    for head in range(heads):
        at = 8 * head * tokens
        describe(products + head * PRODUCT_BYTES, matrix, head, tokens, targets + at, results + at)
    run_products(control, work, products, heads, panels)


def _multiply(pool: Pool, w: Matrix, x: np.ndarray, token_stride: int, head_stride: int, out: np.ndarray) -> None:
    tokens = x.shape[0]
    if not out.size:
        return
    pairs = w.count * tokens
    size = w.count * PRODUCT_BYTES + pairs * (24 + column_space(w.columns)) + pool.threads * panel_bytes(w.columns) + 512
    work = pool.scratch(size)
    _linear(pool.control, work, w.address, address(x), token_stride, head_stride, address(out), tokens)


def linear(pool: Pool, w: Matrix, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """x[T, K] · Wᵀ -> [T, M]"""
    if w.count != 1:
        raise ValueError(f"linear takes one matrix, this tensor has {w.count}")
    tokens = x.shape[0]
    check_rows("x", x, (tokens, w.columns))
    out = result(out, (tokens, w.rows))
    _multiply(pool, w, x, x.strides[0], 0, out)
    return out


def linear_heads(pool: Pool, w: Matrix, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Head h of x[T, H, K] times matrix h -> [T, H, M]; x may have any outer strides."""
    tokens = x.shape[0]
    check_rows("x", x, (tokens, w.count, w.columns))
    out = result(out, (tokens, w.count, w.rows))
    _multiply(pool, w, x, x.strides[0], x.strides[1], out)
    return out


@device
def unpacked_to_f32(panel, columns, flags, target):
    """A panel row as float32 values: the exact dequantization."""
    scales, minima = panel + columns, panel + columns // 4 * 5
    for i in range(columns):
        at = i // 16 * 4
        value = np.float32(load_i8(panel + i)) * load_f32(scales + at)
        store(target + 4 * i, value - load_f32(minima + at) if flags & MINIMUM else value)


@kernel
def _dequantize(matrix, weights, row_count, panel, target):
    """`row_count` rows starting at address `weights`."""
    columns, flags = load_i64(matrix + 32), load_i64(matrix + 56)
    for row in range(row_count):
        source, into = weights + row * load_i64(matrix + 16), target + 4 * row * columns
        if flags & FLOAT:
            call_unpack(load_i64(matrix + 48), source, columns, into)
        else:
            call_unpack(load_i64(matrix + 48), source, columns, panel)
            unpacked_to_f32(panel, columns, flags, into)


def dequantize(w: Matrix, index: int | None = None, rows: slice = slice(None)) -> np.ndarray:
    """float32 [count, rows, columns], or of one matrix [rows, columns]: bit for bit what the format's definition says."""
    if index is not None and not 0 <= index < w.count:
        raise ValueError(f"matrix {index} of {w.count}")
    first, stop, step = rows.indices(w.rows)
    if step != 1:
        raise ValueError(f"rows {rows}: only a step of 1 is possible")
    count = max(0, stop - first)
    chosen = range(w.count) if index is None else [index]
    out = np.empty((len(chosen), count, w.columns), np.float32)
    panel = np.empty(panel_bytes(w.columns), np.uint8)
    base, matrix_stride, row_stride = (int(field) for field in w.descriptor[:3])
    for i, matrix in enumerate(chosen):
        at = base + matrix * matrix_stride + first * row_stride
        if out.size:
            _dequantize(w.address, at, count, address(panel), address(out[i]))
    return out[0] if index is not None or w.data.ndim == 2 else out


def embed(w: Matrix, ids: Any) -> np.ndarray:
    """Rows `ids`[T] of a matrix -> float32 [T, K]"""
    ids = np.asarray(ids, np.int64)
    if ids.ndim != 1 or (ids.size and not (0 <= ids.min() and ids.max() < w.rows)):
        raise ValueError(f"ids of shape {ids.shape} from {ids.min(initial=0)} to {ids.max(initial=0)}; rows 0 to {w.rows - 1} exist")
    out = np.empty((len(ids), w.columns), np.float32)
    panel = np.empty(panel_bytes(w.columns), np.uint8)
    base, stride = int(w.descriptor[0]), int(w.descriptor[2])
    for i, id in enumerate(ids):
        _dequantize(w.address, base + int(id) * stride, 1, address(panel), address(out) + 4 * i * w.columns)
    return out
