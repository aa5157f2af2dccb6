"""x · W on the same blocks: for an unsplit `attn_kv_b`, whose key half acts on the latent instead of on the query."""

import numpy as np

from .atomic import fetch_add, load_i64
from .embedding import dequantize_row
from .jit import device, job
from .matmul import check_rows, result
from .matrix import COLUMNS, COUNT, MATRIX_STRIDE, ROW_STRIDE, ROWS, WEIGHTS, Matrix, address
from .pool import CHUNK, Pool
from .product import panel_bytes
from .simd import fma, load_f32, load_f32x8, splat_f32x8, store

TOKENS_PER_UNIT = 16  # columns that share a dequantized row; 16 results of 512 values fill half an L1


@device
def _zero(target, columns):
    for at in range(0, columns * 4 - 31, 32):
        store(target + at, splat_f32x8(np.float32(0.0)))
    for at in range(columns // 8 * 32, columns * 4, 4):
        store(target + at, np.float32(0.0))


@device
def _add(factor, row, columns, target):
    """target += factor x row"""
    for at in range(0, columns * 4 - 31, 32):
        store(target + at, fma(load_f32x8(row + at), factor, load_f32x8(target + at)))
    for at in range(columns // 8 * 32, columns * 4, 4):
        store(target + at, load_f32(target + at) + factor * load_f32(row + at))


@job
def _transposed_job(arguments, thread, threads):
    """(counter, matrix, tokens, x, its token stride, its head stride, out, panels, bytes of a panel)"""
    counter, matrix, tokens = load_i64(arguments), load_i64(arguments + 8), load_i64(arguments + 16)
    x, token_stride, head_stride = load_i64(arguments + 24), load_i64(arguments + 32), load_i64(arguments + 40)
    out, size = load_i64(arguments + 48), load_i64(arguments + 64)
    panel = load_i64(arguments + 56) + thread * 2 * size
    rows, columns, heads = load_i64(matrix + ROWS), load_i64(matrix + COLUMNS), load_i64(matrix + COUNT)
    chunks = -(-tokens // TOKENS_PER_UNIT)
    unit = fetch_add(counter, 1)
    while unit < heads * chunks:
        head, first = unit // chunks, unit % chunks * TOKENS_PER_UNIT
        last = min(tokens, first + TOKENS_PER_UNIT)
        for token in range(first, last):
            _zero(out + (token * heads + head) * columns * 4, columns)
        weights = load_i64(matrix + WEIGHTS) + head * load_i64(matrix + MATRIX_STRIDE)
        for row in range(rows):
            dequantize_row(matrix, weights + row * load_i64(matrix + ROW_STRIDE), panel, panel + size)
            for token in range(first, last):
                factor = load_f32(x + token * token_stride + head * head_stride + 4 * row)
                _add(factor, panel + size, columns, out + (token * heads + head) * columns * 4)
        unit = fetch_add(counter, 1)


def linear_heads_transposed(pool: Pool, w: Matrix, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Head h of x[T, H, rows], any outer strides, times matrix h from the left -> [T, H, columns]"""
    tokens = x.shape[0]
    check_rows("x", x, (tokens, w.count, w.rows))
    out = result(out, (tokens, w.count, w.columns))
    size = panel_bytes(w.columns)
    panels = pool.scratch(2 * size * pool.threads)
    arguments = [pool.control + CHUNK, w.address, tokens, address(x), *x.strides[:2], address(out), panels, size]
    pool.run(_transposed_job.address, np.array(arguments, np.int64))
    return out
