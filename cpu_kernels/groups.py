"""Row groups of a Matrix of either layout times columns, for jobs: one call computes some groups times all columns."""

from . import matrix as descriptor
from .atomic import call_dequantize, call_multiply, load_i64, store_i64
from .jit import device
from .machine import LANES, MACHINE
from .matrix import X16
from .simd import load_f32, store
from .x16 import interleave_group

WIDEST, WIDE = MACHINE.COLUMNS[-1], MACHINE.WIDE
_HAS_TWO = 2 in MACHINE.COLUMNS


@device
def group_bytes(matrix):
    return LANES * load_i64(matrix + descriptor.BLOCKS) * load_i64(matrix + descriptor.BLOCK_BYTES)


@device
def matrix_groups(matrix):
    return (load_i64(matrix + descriptor.ROWS) + LANES - 1) // LANES


# A thread's working memory for `multiply_rows`: row addresses of a group | two lists of columns | results to be
# copied | an interleaved panel.
_LISTS = 8 * LANES
_Y_LIST = _LISTS + 8 * max(WIDEST, WIDE)
_DUMP = _Y_LIST + 8 * max(WIDEST, WIDE)
HEAD_BYTES = _DUMP + 4 * LANES * max(WIDEST, WIDE)


@device
def panel_groups(matrix, limit):
    """How many groups of this matrix a panel of `limit` bytes holds, at least one."""
    return max(1, limit // group_bytes(matrix))


@device
def interleave_rows(matrix, index, group, work, target):
    """Group number `group` of matrix `index` in the GGUF layout -> x16 at `target`; `work`: 128 bytes."""
    stride, rows = load_i64(matrix + descriptor.ROW_STRIDE), load_i64(matrix + descriptor.ROWS)
    start = load_i64(matrix + descriptor.WEIGHTS) + index * load_i64(matrix + descriptor.MATRIX_STRIDE)
    for r in range(LANES):
        store_i64(work + 8 * r, start + min(LANES * group + r, rows - 1) * stride)
    blocks, block_bytes = load_i64(matrix + descriptor.BLOCKS), load_i64(matrix + descriptor.BLOCK_BYTES)
    half, order = load_i64(matrix + descriptor.HALF), load_i64(matrix + descriptor.ORDER)
    interleave_group(work, blocks, block_bytes, half, order, target)


@device
def locate_groups(matrix, index, first, groups, work, panel):
    """Address of the groups in the x16 layout: where they lie, or interleaved into `panel`."""
    size = group_bytes(matrix)
    if load_i64(matrix + descriptor.FLAGS) & X16:
        stack = load_i64(matrix + descriptor.WEIGHTS) + index * load_i64(matrix + descriptor.MATRIX_STRIDE)
        return stack + first * size
    for group in range(groups):
        interleave_rows(matrix, index, first + group, work, panel + group * size)
    return panel


@device
def tile_width(columns):
    """The next tile's width. One more than `columns` costs less than two tiles where three or seven are left, and tile
    registers take less time for 16 than vectors for 8 and one more. A wide tile (wide.py) is filled up to fours: a tile
    of its own for the rest would decode every block once more."""
    if WIDE and columns > 4:
        return min(WIDE, (columns + 3) & -4)
    if WIDEST == 16 and columns > 8:
        return 16
    if WIDEST >= 8 and columns >= 7:
        return 8
    if columns >= 3:
        return 4
    if columns == 2:
        return 2 if _HAS_TWO else 4
    return 1


@device
def _multiply_part(matrix, weights, first, rows, columns, x_list, y_list, y_offset, work):
    """The last group, not all of whose rows exist: through the dump."""
    blocks = load_i64(matrix + descriptor.BLOCKS)
    y = work + _Y_LIST
    width = tile_width(columns)
    for c in range(width):
        store_i64(work + _LISTS + 8 * c, load_i64(x_list + 8 * min(c, columns - 1)))
        store_i64(y + 8 * c, work + _DUMP + 4 * LANES * c)
    call_multiply(load_i64(matrix + descriptor.MULTIPLY), weights, 1, blocks, width, work + _LISTS, y, 0)
    for c in range(columns):
        for r in range(rows):
            store(load_i64(y_list + 8 * c) + y_offset + 4 * (first + r), load_f32(work + _DUMP + 4 * (LANES * c + r)))


@device
def _multiply_groups(matrix, weights, groups, width, columns, x_list, y_list, y_offset, work):
    """The missing columns of a tile repeat the last one: the same results, to the same place."""
    multiply, blocks = load_i64(matrix + descriptor.MULTIPLY), load_i64(matrix + descriptor.BLOCKS)
    if width > columns:
        for c in range(width):
            at = 8 * min(c, columns - 1)
            store_i64(work + _LISTS + 8 * c, load_i64(x_list + at))
            store_i64(work + _Y_LIST + 8 * c, load_i64(y_list + at))
        x_list, y_list = work + _LISTS, work + _Y_LIST
    call_multiply(multiply, weights, groups, blocks, width, x_list, y_list, y_offset)


@device
def multiply_rows(matrix, index, first, groups, columns, x_list, y_list, y_offset, work):
    """Groups first .. first + groups - 1 of matrix `index` times the columns at the addresses in x_list.

    Row r of these groups goes to y_list[c] + y_offset + 4r; rows that do not exist are not written. `work`: HEAD_BYTES
    and, for the GGUF layout, the groups' bytes. A column's results do not depend on the other columns.
    """
    weights = locate_groups(matrix, index, first, groups, work, work + HEAD_BYTES)
    rows = load_i64(matrix + descriptor.ROWS) - LANES * first
    whole = min(groups, rows // LANES)
    column = 0
    while column < columns:
        width = tile_width(columns - column)
        taken = min(width, columns - column)
        x, y = x_list + 8 * column, y_list + 8 * column
        if whole:
            _multiply_groups(matrix, weights, whole, width, taken, x, y, y_offset, work)
        if whole < groups:
            part = weights + whole * group_bytes(matrix)
            _multiply_part(matrix, part, LANES * whole, rows - LANES * whole, taken, x, y, y_offset, work)
        column += taken


@device
def dequantize_group(matrix, index, group, target, work):
    """16 float32 rows of COLUMNS values at `target`. `work`: as for `multiply_rows`, one group."""
    weights = locate_groups(matrix, index, group, 1, work, work + HEAD_BYTES)
    stride = 4 * load_i64(matrix + descriptor.COLUMNS)
    blocks = load_i64(matrix + descriptor.BLOCKS)
    call_dequantize(load_i64(matrix + descriptor.DEQUANTIZE), weights, blocks, target, stride)
