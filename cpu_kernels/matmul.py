"""Linear verbs. T tokens, H heads, K columns in, M rows out; activations float32."""

from collections.abc import Sequence

import numpy as np

from .atomic import load_i64, store_i64
from .control import NODES
from .jit import entry
from .matrix import COLUMNS, COUNT, FLAGS, FLOAT, ROWS, Matrix, address
from .pool import Pool
from .product import (
    PRODUCT_BYTES,
    PRODUCTS_JOB,
    argument_bytes,
    column_bytes,
    column_space,
    describe,
    plan_quantization,
    run_products,
    thread_bytes,
)


def check_rows(name: str, x: np.ndarray, shape: tuple[int, ...]) -> None:
    """A float32 array of this shape whose last axis is contiguous."""
    if x.dtype != np.float32 or x.shape != shape or (x.strides[-1] != 4 and x.size):
        raise ValueError(f"{name} is {x.dtype}{list(x.shape)} with strides {x.strides}; needed is float32{list(shape)}")


def result(pool: Pool, out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """`out` if it fits, or a new array."""
    if out is None:
        return pool.results.empty(shape)
    if out.dtype != np.float32 or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out is {out.dtype}{list(out.shape)}; needed is a C-contiguous float32{list(shape)}")
    return out


@entry
def _linear(control, arguments):
    """(job, matrices: list of descriptors, their number, T, x, its token stride, its head stride, out, bytes of a token
    of out, working memory, bytes of a thread's share of it)

    Several matrices have the same x and stand side by side in a token of out; one may hold H heads, each with its own
    share of x.
    """
    job, matrices, count, tokens = (
        load_i64(arguments),
        load_i64(arguments + 8),
        load_i64(arguments + 16),
        load_i64(arguments + 24),
    )
    x, token_stride, head_stride = (
        load_i64(arguments + 32),
        load_i64(arguments + 40),
        load_i64(arguments + 48),
    )
    out, out_stride, work = load_i64(arguments + 56), load_i64(arguments + 64), load_i64(arguments + 72)
    heads, columns = load_i64(load_i64(matrices) + COUNT), load_i64(load_i64(matrices) + COLUMNS)
    pairs = heads * tokens
    products = work + argument_bytes(load_i64(control + NODES))
    sources = products + heads * count * PRODUCT_BYTES
    targets, results = sources + 8 * pairs, sources + 16 * pairs
    columns_at = (results + 8 * tokens + 63) & -64
    for pair in range(pairs):
        store_i64(sources + 8 * pair, x + pair % tokens * token_stride + pair // tokens * head_stride)
        store_i64(targets + 8 * pair, columns_at + pair * column_space(columns))
    for token in range(tokens):
        store_i64(results + 8 * token, out + token * out_stride)
    quantized = 0
    at = 0
    for i in range(count):
        matrix = load_i64(matrices + 8 * i)
        x_list = sources
        if not load_i64(matrix + FLAGS) & FLOAT:
            x_list, quantized = targets, pairs
        for head in range(heads):
            product = products + (i * heads + head) * PRODUCT_BYTES
            describe(product, matrix, head, tokens, x_list + 8 * head * tokens, results, at)
            at += 4 * load_i64(matrix + ROWS)
    plan_quantization(work, quantized, columns, sources, targets)
    threads_at = (columns_at + pairs * column_space(columns) + 63) & -64
    run_products(control, job, work, products, heads * count, threads_at, load_i64(arguments + 80))


def _multiply(pool: Pool, matrices: Sequence[Matrix], x: np.ndarray, head_stride: int, out: np.ndarray) -> None:
    tokens, first = len(x), matrices[0]
    if not out.size:
        return
    pairs = first.count * tokens
    products = len(matrices) * first.count * PRODUCT_BYTES
    lists = argument_bytes(len(pool.nodes)) + products + 16 * pairs + 8 * tokens + 192
    share = thread_bytes(1, *matrices)
    work = pool.scratch(lists + pairs * column_bytes(first.columns) + pool.threads * share)
    descriptors = np.array([w.address for w in matrices], np.int64)
    places = address(x), x.strides[0], head_stride, address(out), out.strides[0], work, share
    arguments = np.array([PRODUCTS_JOB, address(descriptors), len(matrices), tokens, *places], np.int64)
    pool.call(_linear.address, arguments, descriptors, matrices, x, out)


def linear(pool: Pool, w: Matrix | Sequence[Matrix], x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """x[T, K] · Wᵀ -> [T, M]; of several matrices with the same K, side by side: M is the sum of their rows."""
    matrices = (w,) if isinstance(w, Matrix) else tuple(w)
    for matrix in matrices:
        if matrix.count != 1:
            raise ValueError(f"linear takes one matrix, this tensor has {matrix.count}")
        check_rows("x", x, (len(x), matrix.columns))
    out = result(pool, out, (len(x), sum(matrix.rows for matrix in matrices)))
    _multiply(pool, matrices, x, 0, out)
    return out


def linear_heads(pool: Pool, w: Matrix, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Head h of x[T, H, K] times matrix h -> [T, H, M]; x may have any outer strides."""
    tokens = x.shape[0]
    check_rows("x", x, (tokens, w.count, w.columns))
    out = result(pool, out, (tokens, w.count, w.rows))
    _multiply(pool, (w,), x, x.strides[1], out)
    return out
