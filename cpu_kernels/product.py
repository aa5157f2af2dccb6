"""The one job behind every linear verb: a list of matrix products, cut into units of rows that threads take one by one.

A product is a row of int64 fields (below); its columns are lists of addresses, so tokens need not be contiguous. Every
result is computed by one thread, so nothing depends on the number of threads.
"""

import numpy as np
from numba.extending import register_jitable

from . import matrix as descriptor
from .activation import quantize_blocks
from .atomic import call_dot, call_unpack, fetch_add, load_i64, store_i64
from .jit import device, job
from .panel import TOTALS_BYTES, multiply_panel, panel_row_bytes
from .pool import CHUNK, THREADS, dispatch

# Fields of a product.
WEIGHTS, STRIDE, ROWS, COLUMNS, DOT, UNPACK, FLAGS, TOKENS, X_LIST, Y_LIST, UNIT_ROWS, UNITS = range(0, 96, 8)
PRODUCT_BYTES = 96
ARGUMENT_BYTES = 128  # room for the int64 arguments of any job here

# A few columns are cheaper one by one: the weights of a unit stay in the cache.
DOT_TOKENS = 3
SERIAL_VALUES = 4096  # activations that one thread quantizes in 2 us
UNIT_BYTES = 65536  # of weights for one unit of the dot kernel
PANEL_BYTES = 196608  # of a thread's panel: half of a small L2


@device
def panel_rows(columns, flags):
    """Even, and at least the tile's 2."""
    return max(2, min(32, PANEL_BYTES // panel_row_bytes(columns, flags)) & -2)


@device
def plan(products, count, threads):
    """Fill UNIT_ROWS and UNITS of every product; the number of all units and of bytes a thread's panel needs."""
    units = panel = 0
    for i in range(count):
        product = products + i * PRODUCT_BYTES
        rows, columns = load_i64(product + ROWS), load_i64(product + COLUMNS)
        if load_i64(product + TOKENS) <= DOT_TOKENS:
            share = -(-rows * count // (8 * threads))  # some 8 units for each thread
            unit = max(1, min(UNIT_BYTES // load_i64(product + STRIDE), share))
        else:
            flags = load_i64(product + FLAGS)
            unit = panel_rows(columns, flags)
            panel = max(panel, TOTALS_BYTES + unit * panel_row_bytes(columns, flags))
        store_i64(product + UNIT_ROWS, unit)
        store_i64(product + UNITS, -(-rows // unit) if load_i64(product + TOKENS) else 0)
        units += load_i64(product + UNITS)
    return units, panel


@device
def _multiply_unit(product, unit, panel):
    unit_rows, columns, tokens = load_i64(product + UNIT_ROWS), load_i64(product + COLUMNS), load_i64(product + TOKENS)
    first = unit * unit_rows
    rows = min(unit_rows, load_i64(product + ROWS) - first)
    stride = load_i64(product + STRIDE)
    weights = load_i64(product + WEIGHTS) + first * stride
    x_list, y_list = load_i64(product + X_LIST), load_i64(product + Y_LIST)
    if tokens <= DOT_TOKENS:
        for t in range(0, 8 * tokens, 8):
            y = load_i64(y_list + t) + 4 * first
            call_dot(load_i64(product + DOT), weights, stride, rows, columns, load_i64(x_list + t), y)
        return
    flags = load_i64(product + FLAGS)
    for row in range(rows):
        panel_row = panel + TOTALS_BYTES + row * panel_row_bytes(columns, flags)
        call_unpack(load_i64(product + UNPACK), weights + row * stride, columns, panel_row)
    multiply_panel(panel, rows, columns, flags, x_list, y_list, 4 * first, tokens)


@job
def _multiply_job(arguments, thread, threads):
    """(address of the unit counter, units, products, panels, bytes of a panel)"""
    counter, units = load_i64(arguments), load_i64(arguments + 8)
    product = load_i64(arguments + 16)
    panel = load_i64(arguments + 24) + thread * load_i64(arguments + 32)
    before = 0
    unit = fetch_add(counter, 1)
    while unit < units:
        while unit - before >= load_i64(product + UNITS):
            before += load_i64(product + UNITS)
            product += PRODUCT_BYTES
        _multiply_unit(product, unit - before, panel)
        unit = fetch_add(counter, 1)


@job
def _quantize_job(arguments, thread, threads):
    """(rows, columns, list of f32 rows, list of activation columns)"""
    rows, columns = load_i64(arguments), load_i64(arguments + 8)
    sources, targets = load_i64(arguments + 16), load_i64(arguments + 24)
    blocks = columns // 32
    at, end = rows * blocks * thread // threads, rows * blocks * (thread + 1) // threads
    while at < end:
        row, first = at // blocks, at % blocks
        last = min(blocks, first + end - at)
        quantize_blocks(load_i64(sources + 8 * row), load_i64(targets + 8 * row), columns, first, last)
        at += last - first


# Jobs reach compiled code through this table: an address inside a kernel would be frozen into its cached machine code.
JOBS = np.array([_multiply_job.address, _quantize_job.address], np.int64)
MULTIPLY, QUANTIZE = 0, 8


def panel_bytes(columns: int) -> int:
    """Enough for a thread's panel of rows of this length, whatever the format."""
    return TOTALS_BYTES + max(PANEL_BYTES, 2 * 4 * columns) + 64


@register_jitable
def column_space(columns: int) -> int:
    """Bytes of an activation column with its padding, quantized or not."""
    return columns // 8 * 11 + 64


@device
def describe(product, matrix, index, tokens, x_list, y_list):
    """Write the product of matrix `index` of a Matrix (`matrix`: its descriptor's address) with a list of columns."""
    stack = load_i64(matrix + descriptor.WEIGHTS)
    store_i64(product + WEIGHTS, stack + index * load_i64(matrix + descriptor.MATRIX_STRIDE))
    store_i64(product + STRIDE, load_i64(matrix + descriptor.ROW_STRIDE))
    store_i64(product + ROWS, load_i64(matrix + descriptor.ROWS))
    store_i64(product + COLUMNS, load_i64(matrix + descriptor.COLUMNS))
    store_i64(product + DOT, load_i64(matrix + descriptor.DOT))
    store_i64(product + UNPACK, load_i64(matrix + descriptor.UNPACK))
    store_i64(product + FLAGS, load_i64(matrix + descriptor.FLAGS))
    store_i64(product + TOKENS, tokens)
    store_i64(product + X_LIST, x_list)
    store_i64(product + Y_LIST, y_list)


@device
def run_products(control, jobs, arguments, products, count, panels):
    """Dispatch the products; `arguments`: 5 int64 of working memory."""
    units, panel = plan(products, count, load_i64(control + THREADS))
    store_i64(arguments, control + CHUNK)
    store_i64(arguments + 8, units)
    store_i64(arguments + 16, products)
    store_i64(arguments + 24, panels)
    store_i64(arguments + 32, (panel + 63) & -64)
    dispatch(control, load_i64(jobs + MULTIPLY), arguments)


@device
def run_quantize(control, jobs, arguments, rows, columns, sources, targets):
    """Quantize f32 rows into activation columns; on the caller alone when that is quicker than waking the others."""
    if rows * columns <= SERIAL_VALUES:
        for row in range(rows):
            quantize_blocks(load_i64(sources + 8 * row), load_i64(targets + 8 * row), columns, 0, columns // 32)
        return
    store_i64(arguments, rows)
    store_i64(arguments + 8, columns)
    store_i64(arguments + 16, sources)
    store_i64(arguments + 24, targets)
    dispatch(control, load_i64(jobs + QUANTIZE), arguments)
