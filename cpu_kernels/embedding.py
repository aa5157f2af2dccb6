"""Weights as float32 values, bit for bit what the format's definition says: whole matrices, and rows for embedding."""

from typing import Any

import numpy as np

from . import matrix as descriptor
from .atomic import call_dequantize, fetch_add, load_i64, store_i64
from .control import CHUNK, dispatch
from .groups import HEAD_BYTES, dequantize_group
from .jit import device, entry, job
from .machine import LANES
from .matrix import Matrix, address
from .pool import Pool
from .simd import load_f32, load_f32x8, store
from .x16 import interleave_group


@device
def _copy(source, target, values):
    for at in range(0, 4 * values - 31, 32):
        store(target + at, load_f32x8(source + at))
    for at in range(values // 8 * 32, 4 * values, 4):
        store(target + at, load_f32(source + at))


@job
def _dequantize_job(arguments, thread, threads):
    """(control, matrix, first matrix, how many, first row, rows of each, target, works, bytes of a thread's work)"""
    control, matrix = load_i64(arguments), load_i64(arguments + 8)
    first_matrix, count = load_i64(arguments + 16), load_i64(arguments + 24)
    first, rows, target = load_i64(arguments + 32), load_i64(arguments + 40), load_i64(arguments + 48)
    work = load_i64(arguments + 56) + thread * load_i64(arguments + 64)
    values = load_i64(matrix + descriptor.COLUMNS)
    first_group = first // LANES
    groups = (first + rows + LANES - 1) // LANES - first_group
    panel = work + HEAD_BYTES + LANES * load_i64(matrix + descriptor.BLOCKS) * load_i64(matrix + descriptor.BLOCK_BYTES)
    unit = fetch_add(control + CHUNK, 1)
    while unit < groups * count:
        index, group = unit // groups, first_group + unit % groups
        low, high = max(first, LANES * group), min(first + rows, LANES * (group + 1))
        out = target + 4 * (index * rows + low - first) * values
        if high - low == LANES:
            dequantize_group(matrix, first_matrix + index, group, out, work)
        else:
            dequantize_group(matrix, first_matrix + index, group, panel, work)
            _copy(panel + 4 * (low - LANES * group) * values, out, (high - low) * values)
        unit = fetch_add(control + CHUNK, 1)


@entry
def _dequantize(control, arguments):
    """(job, arguments of the job but the first ...)"""
    store_i64(arguments + 8, control)
    dispatch(control, load_i64(arguments), arguments + 8)


def thread_space(w: Matrix) -> int:
    """Working memory of a thread that dequantizes a group: an interleaved group, its values."""
    return (HEAD_BYTES + LANES * (w.row_bytes + 4 * w.columns) + 127) & -64


def dequantize(pool: Pool, w: Matrix, index: int | None = None, rows: slice = slice(None)) -> np.ndarray:
    """float32 [count, rows, columns]; [rows, columns] of matrix `index`, or where the weights have two dimensions."""
    if index is not None and not 0 <= index < w.count:
        raise ValueError(f"matrix {index}; matrices 0 to {w.count - 1} exist")
    first, stop, step = rows.indices(w.rows)
    if step != 1:
        raise ValueError(f"rows {rows}: only a step of 1 is possible")
    count = w.count if index is None else 1
    out = pool.results.empty((count, max(0, stop - first), w.columns))
    if out.size:
        share = thread_space(w)
        work = pool.scratch(share * pool.threads)
        where = index or 0, count, first, out.shape[1], address(out), work, share
        pool.call(_dequantize.address, np.array([_dequantize_job.address, 0, w.address, *where], np.int64), w, out)
    return out[0] if index is not None or w.flat else out


@entry
def _embed(control, arguments):
    """(matrix, ids int64, T, out, working memory): 16 tokens' rows at a time, as one group"""
    matrix, ids, tokens = load_i64(arguments), load_i64(arguments + 8), load_i64(arguments + 16)
    out, work = load_i64(arguments + 24), load_i64(arguments + 32)
    blocks, block_bytes = load_i64(matrix + descriptor.BLOCKS), load_i64(matrix + descriptor.BLOCK_BYTES)
    row_bytes, values = load_i64(matrix + descriptor.ROW_STRIDE), load_i64(matrix + descriptor.COLUMNS)
    group = work + 8 * LANES
    target = (group + LANES * blocks * block_bytes + 63) & -64
    for first in range(0, tokens, LANES):
        for r in range(LANES):
            row = load_i64(ids + 8 * min(first + r, tokens - 1))
            store_i64(work + 8 * r, load_i64(matrix + descriptor.WEIGHTS) + row * row_bytes)
        half, order = load_i64(matrix + descriptor.HALF), load_i64(matrix + descriptor.ORDER)
        interleave_group(work, blocks, block_bytes, half, order, group)
        call_dequantize(load_i64(matrix + descriptor.DEQUANTIZE), group, blocks, target, 4 * values)
        _copy(target, out + 4 * first * values, min(LANES, tokens - first) * values)


def embed(pool: Pool, w: Matrix, ids: Any, out: np.ndarray | None = None) -> np.ndarray:
    """Rows `ids`[T] of a matrix in the GGUF layout -> float32 [T, K].

    A recorded call reads the ids again from the same int64 array; they are then not checked.
    """
    ids = np.asarray(ids, np.int64)
    low, high = ids.min(initial=0), ids.max(initial=0)
    if ids.ndim != 1 or low < 0 or high >= w.rows:
        raise ValueError(f"ids of shape {ids.shape} from {low} to {high}; rows 0 to {w.rows - 1} exist")
    if w.layout != "gguf":
        raise ValueError(f"rows are embedded from the layout of the file, these weights are {w.layout}")
    ids = np.ascontiguousarray(ids)
    out = pool.results.empty((len(ids), w.columns)) if out is None else out
    if out.size:
        work = pool.scratch(8 * LANES + LANES * (w.row_bytes + 4 * w.columns) + 128)
        arguments = np.array([w.address, address(ids), len(ids), address(out), work], np.int64)
        pool.call(_embed.address, arguments, w, ids, out)
    return out
