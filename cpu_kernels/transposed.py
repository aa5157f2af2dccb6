"""x · W on the same blocks: for an unsplit `attn_kv_b`, whose key half acts on the latent instead of on the query."""

import numpy as np

from . import matrix as descriptor
from .atomic import fetch_add, load_i64, store_i64
from .control import CHUNK, dispatch
from .embedding import thread_space
from .groups import HEAD_BYTES, dequantize_group, group_bytes
from .jit import device, entry, job
from .machine import LANES
from .matmul import check_rows, result
from .matrix import Matrix, address
from .pool import Pool
from .simd import fma, load_f32, load_f32x8, splat_f32x8, store

TOKENS_PER_UNIT = 16  # columns that share a dequantized group; 16 results of 512 values fill half an L1


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
    """(control, matrix, tokens, x, its token stride, its head stride, out, works, bytes of a thread's work)"""
    control, matrix, tokens = load_i64(arguments), load_i64(arguments + 8), load_i64(arguments + 16)
    x, token_stride, head_stride = load_i64(arguments + 24), load_i64(arguments + 32), load_i64(arguments + 40)
    out, work = load_i64(arguments + 48), load_i64(arguments + 56) + thread * load_i64(arguments + 64)
    rows, columns = load_i64(matrix + descriptor.ROWS), load_i64(matrix + descriptor.COLUMNS)
    heads = load_i64(matrix + descriptor.COUNT)
    values = work + HEAD_BYTES + group_bytes(matrix)
    chunks = -(-tokens // TOKENS_PER_UNIT)
    unit = fetch_add(control + CHUNK, 1)
    while unit < heads * chunks:
        head, first = unit // chunks, unit % chunks * TOKENS_PER_UNIT
        last = min(tokens, first + TOKENS_PER_UNIT)
        for token in range(first, last):
            _zero(out + (token * heads + head) * columns * 4, columns)
        for group in range(-(-rows // LANES)):
            dequantize_group(matrix, head, group, values, work)
            for r in range(min(LANES, rows - LANES * group)):
                for token in range(first, last):
                    at = x + token * token_stride + head * head_stride + 4 * (LANES * group + r)
                    target = out + (token * heads + head) * columns * 4
                    _add(load_f32(at), values + 4 * r * columns, columns, target)
        unit = fetch_add(control + CHUNK, 1)


@entry
def _transposed(control, arguments):
    """(job, arguments of the job)"""
    store_i64(arguments + 8, control)
    dispatch(control, load_i64(arguments), arguments + 8)


def linear_heads_transposed(pool: Pool, w: Matrix, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Head h of x[T, H, rows], any outer strides, times matrix h from the left -> [T, H, columns]"""
    tokens = x.shape[0]
    check_rows("x", x, (tokens, w.count, w.rows))
    out = result(pool, out, (tokens, w.count, w.columns))
    share = thread_space(w)
    work = pool.scratch(share * pool.threads)
    places = tokens, address(x), *x.strides[:2], address(out), work, share
    pool.call(_transposed.address, np.array([_transposed_job.address, 0, w.address, *places], np.int64), w, x, out)
    return out
