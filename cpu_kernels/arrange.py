"""Weights from the layout of the file to x16, on all threads of a pool."""

import numpy as np

from . import matrix as descriptor
from .atomic import fetch_add, load_i64, store_i64
from .control import CHUNK, dispatch
from .jit import entry, job
from .machine import LANES
from .matrix import Matrix, address, row_groups
from .pool import Pool
from .x16 import interleave_group


@job
def _interleave_job(arguments, thread, threads):
    """(control, matrix, first group, groups, target, works of 128 bytes): groups counted through all matrices"""
    control, matrix, first = load_i64(arguments), load_i64(arguments + 8), load_i64(arguments + 16)
    groups, target = load_i64(arguments + 24), load_i64(arguments + 32)
    work = load_i64(arguments + 40) + thread * 8 * LANES
    rows = load_i64(matrix + descriptor.ROWS)
    in_matrix = (rows + LANES - 1) // LANES
    blocks, block_bytes = load_i64(matrix + descriptor.BLOCKS), load_i64(matrix + descriptor.BLOCK_BYTES)
    unit = fetch_add(control + CHUNK, 1)
    while unit < groups:
        index, group = (first + unit) // in_matrix, (first + unit) % in_matrix
        start = load_i64(matrix + descriptor.WEIGHTS) + index * load_i64(matrix + descriptor.MATRIX_STRIDE)
        for r in range(LANES):
            row = min(LANES * group + r, rows - 1)
            store_i64(work + 8 * r, start + row * load_i64(matrix + descriptor.ROW_STRIDE))
        out = target + unit * LANES * blocks * block_bytes
        half, order = load_i64(matrix + descriptor.HALF), load_i64(matrix + descriptor.ORDER)
        interleave_group(work, blocks, block_bytes, half, order, out)
        unit = fetch_add(control + CHUNK, 1)


@entry
def _interleave(control, arguments):
    """(job, arguments of the job)"""
    store_i64(arguments + 8, control)
    dispatch(control, load_i64(arguments), arguments + 8)


def interleave(pool: Pool, w: Matrix, out: np.ndarray | None = None) -> Matrix:
    """The same weights in the x16 layout, in `out` or new memory: uint8 [count, groups, 16 x row bytes]."""
    shape = (w.count, row_groups(w.rows), LANES * w.row_bytes)
    out = np.empty(shape, np.uint8) if out is None else out
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype}{list(out.shape)}; needed is a C-contiguous uint8{list(shape)}")
    interleave_groups(pool, w, out, 0, shape[0] * shape[1])
    return Matrix.x16(out, w.type, w.rows, w.columns, flat=w.flat)


def interleave_groups(pool: Pool, w: Matrix, out: np.ndarray, first: int, count: int) -> None:
    """`count` groups of 16 rows, from group `first` on, counted through all matrices; `out`: of `interleave`."""
    if not 0 <= first <= first + count <= w.count * row_groups(w.rows):
        raise ValueError(f"groups {first} to {first + count}; the matrices have {w.count * row_groups(w.rows)}")
    target = address(out) + first * LANES * w.row_bytes
    works = pool.scratch(8 * LANES * pool.threads)
    arguments = [_interleave_job.address, 0, w.address, first, count, target, works]
    pool.call(_interleave.address, np.array(arguments, np.int64), w, out)
