"""The one job behind every linear verb: activations are quantized, then a list of matrix products is cut into units of
row groups that threads take one by one. On several NUMA nodes each has its share of a matrix's row groups, in memory of
its own (`node_groups`), and its threads take units of that share only.

A product is a row of int64 fields (below); its columns are lists of addresses, so tokens need not be contiguous. Every
result is computed by one thread, so nothing depends on the number of threads or nodes.
"""

from numba.extending import register_jitable

from .activation import RECORD_BYTES, quantize_blocks
from .atomic import fetch_add, load_i64, store_i64
from .control import NODES, SEAT_BYTES, SEATS, THREADS, barrier, dispatch
from .groups import HEAD_BYTES, matrix_groups, multiply_rows, panel_groups
from .jit import device, job
from .matrix import COUNT, FLAGS, LANES, X16, Matrix
from .pool import Pool

# Fields of a product: row r of the matrix times column t goes to Y_LIST[t] + Y_OFFSET + 4r.
MATRIX, INDEX, TOKENS, X_LIST, Y_LIST, Y_OFFSET, UNIT_GROUPS = range(0, 56, 8)
PRODUCT_BYTES = 64
# Arguments of the job; behind them a counter of units for each node, in cache lines of its own.
_CONTROL, _QUANTIZED, _VALUES, _SOURCES, _TARGETS, _PRODUCTS, _END, _WORKS, _WORK_BYTES = range(0, 72, 8)
_COUNTERS, COUNTER_BYTES = 128, 128
# Of a thread's seat (control.SEATS): its node, threads of that node, the node's first thread.
SEAT_NODE, SEAT_MEMBERS, SEAT_FIRST = 0, 16, 24

# Weights of a unit: half of a small L2, where they stay while all columns pass; where few pass, a run long enough for
# the memory (of units of 256 KiB, two threads of a Zen 4 read 0.75 of the bandwidth, of 1 MiB all of it).
UNIT_BYTES, RUN_BYTES = 262144, 1 << 20
FEW = 4  # columns


def thread_bytes(groups: int, *matrices: Matrix) -> int:
    """Working memory of a thread for units of these matrices, of at least so many groups."""
    panels = [max(UNIT_BYTES, groups * LANES * w.row_bytes) for w in matrices if w.layout == "gguf"]
    return (HEAD_BYTES + max(panels, default=0) + 127) & -64


@device
def unit_groups(matrix, columns, groups, threads):
    """Groups of a unit: some 8 units for each thread, if not too large; `groups`: of all products."""
    run = columns <= FEW and load_i64(matrix + FLAGS) & X16
    return max(1, min(panel_groups(matrix, RUN_BYTES if run else UNIT_BYTES), groups // (8 * threads)))


@device
def _plan(products, count, threads):
    """Fill UNIT_GROUPS of every product."""
    groups = 0
    for i in range(count):
        groups += matrix_groups(load_i64(products + i * PRODUCT_BYTES + MATRIX))
    for i in range(count):
        product = products + i * PRODUCT_BYTES
        size = unit_groups(load_i64(product + MATRIX), load_i64(product + TOKENS), groups, threads)
        store_i64(product + UNIT_GROUPS, size)


@register_jitable
def argument_bytes(nodes):
    return _COUNTERS + COUNTER_BYTES * nodes


def node_groups(pool: Pool, groups: int) -> list[tuple[int, int]]:
    """[first, end) of each node's share of a Matrix's row groups, counted through all its matrices; as in `_share`."""
    nodes = range(len(pool.nodes))
    firsts = [*(pool.node_of_thread.index(node) for node in nodes), pool.threads]
    return [(groups * firsts[i] // pool.threads, groups * firsts[i + 1] // pool.threads) for i in nodes]


@device
def _share(product, seat, threads):
    """First and last + 1 of the node's groups of this product's matrix."""
    matrix = load_i64(product + MATRIX)
    groups = matrix_groups(matrix)
    everything, before = groups * load_i64(matrix + COUNT), groups * load_i64(product + INDEX)
    thread = load_i64(seat + SEAT_FIRST)
    first = everything * thread // threads - before
    end = everything * (thread + load_i64(seat + SEAT_MEMBERS)) // threads - before
    return max(0, min(groups, first)), max(0, min(groups, end))


@device
def _multiply_unit(product, first, groups, work):
    x_list, y_list = load_i64(product + X_LIST), load_i64(product + Y_LIST)
    offset = load_i64(product + Y_OFFSET) + 4 * LANES * first
    matrix, index, tokens = load_i64(product + MATRIX), load_i64(product + INDEX), load_i64(product + TOKENS)
    multiply_rows(matrix, index, first, groups, tokens, x_list, y_list, offset, work)


@device
def quantize_share(rows, values, sources, targets, thread, threads):
    """This thread's share of the blocks of f32 rows -> activation columns."""
    blocks = values // 32
    at, end = rows * blocks * thread // threads, rows * blocks * (thread + 1) // threads
    while at < end:
        row, first = at // blocks, at % blocks
        last = min(blocks, first + end - at)
        quantize_blocks(load_i64(sources + 8 * row), load_i64(targets + 8 * row), first, last)
        at += last - first


@job
def _products_job(arguments, thread, threads):
    control, rows = load_i64(arguments + _CONTROL), load_i64(arguments + _QUANTIZED)
    if rows:
        sources, targets = load_i64(arguments + _SOURCES), load_i64(arguments + _TARGETS)
        quantize_share(rows, load_i64(arguments + _VALUES), sources, targets, thread, threads)
        barrier(control, thread, threads)
    seat = control + SEATS + SEAT_BYTES * thread
    counter = arguments + _COUNTERS + COUNTER_BYTES * load_i64(seat + SEAT_NODE)
    work = load_i64(arguments + _WORKS) + thread * load_i64(arguments + _WORK_BYTES)
    product, last = load_i64(arguments + _PRODUCTS), load_i64(arguments + _END)
    before = 0
    unit = fetch_add(counter, 1)
    while product < last:
        size = load_i64(product + UNIT_GROUPS)
        first, end = _share(product, seat, threads)
        units = (end - first + size - 1) // size
        while unit - before < units:
            group = first + (unit - before) * size
            _multiply_unit(product, group, min(size, end - group), work)
            unit = fetch_add(counter, 1)
        before += units
        product += PRODUCT_BYTES


PRODUCTS_JOB = _products_job.address  # for an entry's arguments: as a global it would be frozen into cached code


def column_bytes(values: int) -> int:
    """Of an activation column, a multiple of 64."""
    return (values // 32 * RECORD_BYTES + 63) & -64


@device
def column_space(values):
    return (values // 32 * RECORD_BYTES + 63) & -64


@device
def describe(product, matrix, index, tokens, x_list, y_list, y_offset):
    """Write the product of matrix `index` of a Matrix (`matrix`: its descriptor's address) with a list of columns."""
    store_i64(product + MATRIX, matrix)
    store_i64(product + INDEX, index)
    store_i64(product + TOKENS, tokens)
    store_i64(product + X_LIST, x_list)
    store_i64(product + Y_LIST, y_list)
    store_i64(product + Y_OFFSET, y_offset)


@device
def run_products(control, job, arguments, products, count, works, work_bytes):
    """Dispatch the products, after the quantization that `plan_quantization` described in `arguments`."""
    _plan(products, count, load_i64(control + THREADS))
    for at in range(_COUNTERS, argument_bytes(load_i64(control + NODES)), COUNTER_BYTES):
        store_i64(arguments + at, 0)
    store_i64(arguments + _CONTROL, control)
    store_i64(arguments + _PRODUCTS, products)
    store_i64(arguments + _END, products + count * PRODUCT_BYTES)
    store_i64(arguments + _WORKS, works)
    store_i64(arguments + _WORK_BYTES, work_bytes)
    dispatch(control, job, arguments)


@device
def plan_quantization(arguments, rows, values, sources, targets):
    """f32 rows at the addresses in `sources` become activation columns at those in `targets`; 0 rows: nothing to do."""
    store_i64(arguments + _QUANTIZED, rows)
    store_i64(arguments + _VALUES, values)
    store_i64(arguments + _SOURCES, sources)
    store_i64(arguments + _TARGETS, targets)
