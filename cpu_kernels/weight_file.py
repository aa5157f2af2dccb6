"""Weights from a file into memory, rearranged on the way: every thread reads some rows into its core's cache and
interleaves them from there.

The work is a table of units, each some 16-row groups of a tensor. `pread` in compiled code copies a unit out of the
page cache, or waits for the disk; unlike with a mapped file no page is mapped, and a file cut short is an error code.
256 MB from the page cache into memory that is mapped already: 6 to 8 GB/s on 2 cores of a Zen 4. New memory is slower.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import matrix as descriptor
from .atomic import fetch_add, load_i32, load_i64, store_i64
from .control import CHUNK, dispatch
from .jit import device, entry, job
from .machine import LANES
from .matrix import Matrix, address, row_groups
from .pool import Pool
from .x16 import interleave_group

UNIT_BYTES = 1 << 20  # of the file, unless one group is more: what stays in a core's second-level cache
_EINTR = 4

# Offsets into a unit. MATRIX: descriptor, 0 for bytes that stay as they are; ORIGIN: file offset of its first row.
# BYTES 0: what the unit before it read is rearranged once more, other columns of the same rows.
FILE, OFFSET, BYTES, TARGET, MATRIX, ORIGIN, FIRST, GROUPS = range(0, 64, 8)
UNIT_FIELDS = 8


def _symbol(builder, name, result, *parameters):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, parameters), name)


@intrinsic
def _pread(typing, file, target, size, offset):
    """The libc call: bytes read, 0 at the end of the file, -1 for an error."""
    i32, i64 = ir.IntType(32), ir.IntType(64)

    def codegen(context, builder, signature, a):
        function = _symbol(builder, "pread64", i64, i32, i64, i64, i64)
        return builder.call(function, [builder.trunc(a[0], i32), a[1], a[2], a[3]])

    return types.int64(*[types.int64] * 4), codegen


@intrinsic
def _error_number(typing):
    """Address of this thread's errno."""

    def codegen(context, builder, signature, a):
        return builder.call(_symbol(builder, "__errno_location", ir.IntType(64)), [])

    return types.int64(), codegen


@device
def _read(file, offset, size, target):
    """0; the number of an error; -1 where the file ends too early."""
    done = 0
    while done < size:
        got = _pread(file, target + done, size - done, offset + done)
        if got > 0:
            done += got
        elif got == 0:
            return -1
        else:
            error = load_i32(_error_number())
            if error != _EINTR:
                return error
    return 0


@device
def _interleave_unit(unit, buffer, work):
    matrix, group = load_i64(unit + MATRIX), load_i64(unit + FIRST)
    start = buffer - load_i64(unit + OFFSET) + load_i64(unit + ORIGIN)
    rows, stride = load_i64(matrix + descriptor.ROWS), load_i64(matrix + descriptor.ROW_STRIDE)
    blocks, block_bytes = load_i64(matrix + descriptor.BLOCKS), load_i64(matrix + descriptor.BLOCK_BYTES)
    half, order = load_i64(matrix + descriptor.HALF), load_i64(matrix + descriptor.ORDER)
    target = load_i64(unit + TARGET)
    in_matrix = (rows + LANES - 1) // LANES
    for i in range(load_i64(unit + GROUPS)):
        first = start + (group + i) // in_matrix * load_i64(matrix + descriptor.MATRIX_STRIDE)
        row = (group + i) % in_matrix * LANES
        for r in range(LANES):
            store_i64(work + 8 * r, first + min(row + r, rows - 1) * stride)
        interleave_group(work, blocks, block_bytes, half, order, target + i * LANES * blocks * block_bytes)


@job
def _read_job(arguments, thread, threads):
    """(control, units, how many, works, bytes of a thread's work, [out] how many failed, which first, its error)"""
    control, units, count = load_i64(arguments), load_i64(arguments + 8), load_i64(arguments + 16)
    work = load_i64(arguments + 24) + thread * load_i64(arguments + 32)
    end = units + count * 8 * UNIT_FIELDS
    unit = units + fetch_add(control + CHUNK, 1) * 8 * UNIT_FIELDS
    while unit < end and load_i64(arguments + 40) == 0:
        buffer = work + 8 * LANES if load_i64(unit + MATRIX) else load_i64(unit + TARGET)
        size = load_i64(unit + BYTES)
        error = _read(load_i64(unit + FILE), load_i64(unit + OFFSET), size, buffer)
        if error:
            if fetch_add(arguments + 40, 1) == 0:
                store_i64(arguments + 48, (unit - units) // (8 * UNIT_FIELDS))
                store_i64(arguments + 56, error)
            return
        while size and load_i64(unit + MATRIX):
            _interleave_unit(unit, buffer, work)
            unit += 8 * UNIT_FIELDS
            if unit == end or load_i64(unit + BYTES):
                break
        unit = units + fetch_add(control + CHUNK, 1) * 8 * UNIT_FIELDS


@entry
def _read_units(control, arguments):
    """(job, arguments of the job)"""
    store_i64(arguments + 8, control)
    dispatch(control, load_i64(arguments), arguments + 8)


class ReadError(OSError):
    """Reading unit `unit` of a table failed; errno 0: the file ends before it."""

    def __init__(self, errno: int, message: str, unit: int):
        super().__init__(errno, message)
        self.unit = unit


def units(file: int, offset: int, w: Matrix | None, out: np.ndarray, column: int = 0) -> np.ndarray:
    """int64 [n, 8]: the way of a tensor from `offset` of an open file to `out`.

    `w`: how its rows lie in the file, to be interleaved (the bytes it holds are not read); None: bytes as they are. It
    may be some of a tensor's rows, the first of them at `offset`; or some of its columns, from byte `column` of rows
    on: whole rows are then read.
    `out`: C-contiguous uint8; with w as for `interleave`: [count, groups, 16 x row bytes].
    """
    if out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} with strides {out.strides}; needed is C-contiguous uint8")
    if w is None:
        at = np.arange(0, out.size, UNIT_BYTES)
        table = np.zeros((len(at), UNIT_FIELDS), np.int64)
        table[:, OFFSET // 8], table[:, TARGET // 8] = offset + at, address(out) + at
        table[:, BYTES // 8] = np.minimum(UNIT_BYTES, out.size - at)
    else:
        in_matrix = row_groups(w.rows)
        if out.shape != (w.count, in_matrix, LANES * w.row_bytes) or w.layout != "gguf":
            raise ValueError(f"out is uint8{list(out.shape)} for {w.count} x {w.rows} rows of {w.row_bytes} bytes")
        matrix_bytes, row_bytes = map(int, w.descriptor[[descriptor.MATRIX_STRIDE // 8, descriptor.ROW_STRIDE // 8]])
        step = max(1, UNIT_BYTES // (LANES * row_bytes))
        apart = w.count if w.count > 1 and matrix_bytes != w.rows * row_bytes else 1  # one after the other
        stretch = w.count // apart * in_matrix
        first = (np.arange(apart)[:, None] * stretch + np.arange(0, stretch, step)).reshape(-1)
        end = np.minimum(first + step, (first // stretch + 1) * stretch)
        start = first // in_matrix * matrix_bytes + first % in_matrix * LANES * row_bytes
        last = np.minimum(w.rows, ((end - 1) % in_matrix + 1) * LANES)
        stop = (end - 1) // in_matrix * matrix_bytes + last * row_bytes
        table = np.zeros((len(first), UNIT_FIELDS), np.int64)
        table[:, OFFSET // 8], table[:, BYTES // 8] = offset + start, stop - start
        table[:, TARGET // 8] = address(out) + first * out.shape[2]
        table[:, MATRIX // 8], table[:, ORIGIN // 8] = w.address, offset + column
        table[:, FIRST // 8], table[:, GROUPS // 8] = first, end - first
    table[:, FILE // 8] = file
    return table


def in_order(table: np.ndarray) -> np.ndarray:
    """Sorted as they lie in the files; what several read is read once, by the first of them."""
    table = table[np.lexsort((table[:, OFFSET // 8], table[:, FILE // 8]))]
    fields = [FILE // 8, OFFSET // 8, BYTES // 8]
    again = (table[1:, fields] == table[:-1, fields]).all(axis=1) & (table[1:, MATRIX // 8] != 0)
    again &= table[:-1, MATRIX // 8] != 0
    table[1:, BYTES // 8][again] = 0
    return table


def read_units(pool: Pool, table: np.ndarray, work: np.ndarray, *keep: Any) -> None:
    """Read and rearrange them, in order, shared out among the threads. `work`: of `working_memory`. ReadError."""
    share = work.size // pool.threads & -64
    arguments = np.zeros(9, np.int64)
    arguments[:6] = _read_job.address, 0, address(table), len(table), address(work), share
    pool.call(_read_units.address, arguments, table, work, *keep)
    if arguments[6]:
        raise ReadError(max(0, int(arguments[8])), "the file could not be read", int(arguments[7]))


def working_memory(pool: Pool, table: np.ndarray) -> np.ndarray:
    """For the units of a table."""
    share = (8 * LANES + int(table[:, BYTES // 8].max(initial=0)) + 4096 + 63) & -64
    return np.empty(share * pool.threads, np.uint8)
