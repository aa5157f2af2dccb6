"""Linear verbs on untouched GGUF blocks. T tokens, H heads, K columns in, M rows out; activations float32."""

import numpy as np

from .atomic import load_i64, store_i64
from .jit import kernel
from .matrix import COLUMNS, COUNT, FLAGS, ROWS, Matrix, address
from .panel import FLOAT
from .pool import Pool
from .product import (
    ARGUMENT_BYTES,
    JOBS,
    PRODUCT_BYTES,
    column_space,
    describe,
    panel_bytes,
    run_products,
    run_quantize,
)


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
def _linear(control, jobs, work, matrix, x, token_stride, head_stride, out, tokens):
    heads, rows, columns = load_i64(matrix + COUNT), load_i64(matrix + ROWS), load_i64(matrix + COLUMNS)
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
    if load_i64(matrix + FLAGS) & FLOAT:
        targets = sources
    else:
        run_quantize(control, jobs, work, pairs, columns, sources, targets)
        panels = (columns_at + pairs * size + 63) & -64
    for head in range(heads):
        at = 8 * head * tokens
        describe(products + head * PRODUCT_BYTES, matrix, head, tokens, targets + at, results + at)
    run_products(control, jobs, work, products, heads, panels)


def _multiply(pool: Pool, w: Matrix, x: np.ndarray, token_stride: int, head_stride: int, out: np.ndarray) -> None:
    tokens = x.shape[0]
    if not out.size:
        return
    pairs = w.count * tokens
    lists = ARGUMENT_BYTES + w.count * PRODUCT_BYTES + 24 * pairs + 128
    work = pool.scratch(lists + pairs * column_space(w.columns) + pool.threads * panel_bytes(w.columns))
    _linear(pool.control, address(JOBS), work, w.address, address(x), token_stride, head_stride, address(out), tokens)


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
