"""Feed-forward networks on untouched GGUF blocks: routed experts, and the dense FFN as one expert of weight 1.

T tokens, k experts a token, E experts, K columns, F rows of gate and up. A pair is (token, chosen expert), numbered
t·k + j. Pairs are sorted by expert; an expert's tokens are the columns of one product with gate, one with up, then come
SiLU and down.
The weighted sum adds a token's experts in the order in which they were given.
"""

import numpy as np
from numba.extending import register_jitable

from .activation import quantize_blocks
from .atomic import load_i64, store_i64
from .jit import device, job, kernel
from .matmul import check_rows, result
from .matrix import COLUMNS, COUNT, FLAGS, ROWS, Matrix, address
from .panel import FLOAT
from .pool import Pool, dispatch
from .product import (
    ARGUMENT_BYTES,
    PRODUCT_BYTES,
    column_space,
    describe,
    panel_bytes,
    run_products,
    run_quantize,
)
from .product import JOBS as PRODUCT_JOBS
from .simd import exp, fdiv, fma, load_f32, load_f32x8, load_i32, splat_f32x8, store


@device
def _silu_product(gate, up, first, last):
    """gate = gate / (1 + e^-gate) x up for values first to last, a multiple of 8 (rows are padded)."""
    for at in range(4 * first, 4 * last, 32):
        g = load_f32x8(gate + at)
        store(gate + at, fdiv(g, exp(g * np.float32(-1.0)) + np.float32(1.0)) * load_f32x8(up + at))


@job
def _silu_job(arguments, thread, threads):
    """(rows, F, gate values, up values, bytes of a row, activation columns or 0, bytes of a column)"""
    rows, columns = load_i64(arguments), load_i64(arguments + 8)
    gate, up, row_bytes = load_i64(arguments + 16), load_i64(arguments + 24), load_i64(arguments + 32)
    targets, size = load_i64(arguments + 40), load_i64(arguments + 48)
    blocks = -(-columns // 32)
    at, end = rows * blocks * thread // threads, rows * blocks * (thread + 1) // threads
    while at < end:
        row, first = at // blocks, at % blocks
        last = min(blocks, first + end - at)
        values = gate + row * row_bytes
        _silu_product(values, up + row * row_bytes, 32 * first, 32 * last)
        if targets:
            quantize_blocks(values, targets + row * size, columns, first, last)
        at += last - first


@job
def _sum_job(arguments, thread, threads):
    """(T, k, K, results of the pairs, weights, out): out[t] = sum over j of weight[t, j] x result[t·k + j]"""
    tokens, used, columns = load_i64(arguments), load_i64(arguments + 8), load_i64(arguments + 16)
    results, weights, out = load_i64(arguments + 24), load_i64(arguments + 32), load_i64(arguments + 40)
    vectors = columns // 8
    for unit in range(tokens * vectors * thread // threads, tokens * vectors * (thread + 1) // threads):
        token, at = unit // vectors, unit % vectors * 32
        total = splat_f32x8(np.float32(0.0))
        for pair in range(token * used, (token + 1) * used):
            total = fma(load_f32x8(results + pair * columns * 4 + at), load_f32(weights + 4 * pair), total)
        store(out + token * columns * 4 + at, total)
    if thread == 0:
        for token in range(tokens):
            for at in range(vectors * 32, columns * 4, 4):
                rest = np.float32(0.0)
                for pair in range(token * used, (token + 1) * used):
                    rest += load_f32(results + pair * columns * 4 + at) * load_f32(weights + 4 * pair)
                store(out + token * columns * 4 + at, rest)


JOBS = np.concatenate([PRODUCT_JOBS, [_silu_job.address, _sum_job.address]])
SILU, SUM = 8 * len(PRODUCT_JOBS), 8 * len(PRODUCT_JOBS) + 8


@register_jitable
def _layout(experts, tokens, used, columns, hidden):
    """Offsets of the parts of the working memory, each 64-byte aligned, and its end (where the panels begin)."""
    pairs = tokens * used
    lists = ARGUMENT_BYTES
    products = lists + 8 * (experts + 2 * tokens + 6 * pairs)
    x_columns = (products + 2 * min(experts, pairs) * PRODUCT_BYTES + 63) // 64 * 64
    gate = x_columns + tokens * column_space(columns)
    up = gate + pairs * _row_space(hidden)
    h_columns = up + pairs * _row_space(hidden)
    results = h_columns + pairs * column_space(hidden)
    return lists, products, x_columns, gate, up, h_columns, results, (results + 4 * pairs * columns + 63) // 64 * 64


@register_jitable
def _row_space(hidden):
    """Bytes of an f32 row padded to whole blocks of 32 values."""
    return (hidden + 31) // 32 * 128


@device
def _sort_pairs(ids, pairs, experts, ends, order):
    """Pairs by expert: `order` receives their numbers, ends[e] the end of expert e's share. The first bad id, or -1."""
    for expert in range(experts):
        store_i64(ends + 8 * expert, 0)
    for pair in range(pairs):
        expert = load_i32(ids + 4 * pair)
        if expert < 0 or expert >= experts:
            return pair
        store_i64(ends + 8 * expert, load_i64(ends + 8 * expert) + 1)
    before = 0
    for expert in range(experts):
        count = load_i64(ends + 8 * expert)
        store_i64(ends + 8 * expert, before)
        before += count
    for pair in range(pairs):
        end = ends + 8 * load_i32(ids + 4 * pair)
        store_i64(order + 8 * load_i64(end), pair)
        store_i64(end, load_i64(end) + 1)
    return -1


@device
def _describe_all(products, matrix, ends, experts, x_list, y_list):
    """One product for each expert that has pairs; how many."""
    count = start = 0
    for expert in range(experts):
        end = load_i64(ends + 8 * expert)
        if end > start:
            product = products + count * PRODUCT_BYTES
            describe(product, matrix, expert, end - start, x_list + 8 * start, y_list + 8 * start)
            count += 1
        start = end
    return count


@kernel
def _experts(control, jobs, work, matrices, x, ids, weights, out, tokens, used):
    """`matrices`: the descriptors of gate, up and down. The number of the first pair whose id is no expert, or -1."""
    w_gate, w_up, w_down = matrices
    experts, hidden, columns = load_i64(w_gate + COUNT), load_i64(w_gate + ROWS), load_i64(w_gate + COLUMNS)
    pairs = tokens * used
    lists, products, x_columns, gate, up, h_columns, results, panels = _layout(experts, tokens, used, columns, hidden)
    ends, sources, targets = work + lists, work + lists + 8 * experts, work + lists + 8 * (experts + tokens)
    gate_x = targets + 8 * tokens
    up_x, gate_y, up_y = gate_x + 8 * pairs, gate_x + 16 * pairs, gate_x + 24 * pairs
    down_x, down_y = gate_x + 32 * pairs, gate_x + 40 * pairs
    bad = _sort_pairs(ids, pairs, experts, ends, down_y)
    if bad >= 0:
        return bad

    for token in range(tokens):
        store_i64(sources + 8 * token, x + 4 * token * columns)
        store_i64(targets + 8 * token, work + x_columns + token * column_space(columns))
    gate_is_float, up_is_float, down_is_float = (
        load_i64(w_gate + FLAGS) & FLOAT,
        load_i64(w_up + FLAGS) & FLOAT,
        load_i64(w_down + FLAGS) & FLOAT,
    )
    if not (gate_is_float and up_is_float):
        run_quantize(control, jobs, work, tokens, columns, sources, targets)
    row_bytes, column_bytes = _row_space(hidden), column_space(hidden)
    for i in range(pairs):
        pair = load_i64(down_y + 8 * i)
        token = 8 * (pair // used)
        store_i64(gate_x + 8 * i, load_i64((sources if gate_is_float else targets) + token))
        store_i64(up_x + 8 * i, load_i64((sources if up_is_float else targets) + token))
        store_i64(gate_y + 8 * i, work + gate + pair * row_bytes)
        store_i64(up_y + 8 * i, work + up + pair * row_bytes)
        h = work + gate + pair * row_bytes if down_is_float else work + h_columns + pair * column_bytes
        store_i64(down_x + 8 * i, h)
        store_i64(down_y + 8 * i, work + results + 4 * pair * columns)

    count = _describe_all(work + products, w_gate, ends, experts, gate_x, gate_y)
    count += _describe_all(work + products + count * PRODUCT_BYTES, w_up, ends, experts, up_x, up_y)
    run_products(control, jobs, work, work + products, count, work + panels)
    _run_silu(control, jobs, work, pairs, hidden, work + gate, work + up, 0 if down_is_float else work + h_columns)
    count = _describe_all(work + products, w_down, ends, experts, down_x, down_y)
    run_products(control, jobs, work, work + products, count, work + panels)
    _run_sum(control, jobs, work, tokens, used, columns, work + results, weights, out)
    return -1


@device
def _run_silu(control, jobs, arguments, pairs, hidden, gate, up, columns):
    store_i64(arguments, pairs)
    store_i64(arguments + 8, hidden)
    store_i64(arguments + 16, gate)
    store_i64(arguments + 24, up)
    store_i64(arguments + 32, _row_space(hidden))
    store_i64(arguments + 40, columns)
    store_i64(arguments + 48, column_space(hidden))
    dispatch(control, load_i64(jobs + SILU), arguments)


@device
def _run_sum(control, jobs, arguments, tokens, used, columns, results, weights, out):
    store_i64(arguments, tokens)
    store_i64(arguments + 8, used)
    store_i64(arguments + 16, columns)
    store_i64(arguments + 24, results)
    store_i64(arguments + 32, weights)
    store_i64(arguments + 40, out)
    dispatch(control, load_i64(jobs + SUM), arguments)


def _check_matrices(gate: Matrix, up: Matrix, down: Matrix) -> None:
    shapes = [(w.count, w.rows, w.columns) for w in (gate, up, down)]
    count, hidden, columns = shapes[0]
    if shapes != [(count, hidden, columns), (count, hidden, columns), (count, columns, hidden)]:
        raise ValueError(
            f"gate, up and down are (count, rows, columns) {shapes}; up must be like gate, down its transpose"
        )


def routed_experts(
    pool: Pool,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    x: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """For each token of x[T, K] the sum over its experts ids[T, k] of weights[T, k] x down(SiLU(gate x) * up x)."""
    _check_matrices(gate, up, down)
    tokens, used = ids.shape
    if ids.dtype != np.int32 or not ids.flags.c_contiguous:
        raise ValueError(f"ids are {ids.dtype} with strides {ids.strides}; needed are C-contiguous int32")
    check_rows("x", x, (tokens, gate.columns))
    check_rows("weights", weights, (tokens, used))
    if not (x.flags.c_contiguous and weights.flags.c_contiguous):
        raise ValueError(f"x and weights must be C-contiguous; their strides are {x.strides} and {weights.strides}")
    out = result(out, x.shape)
    if not out.size:
        return out
    size = _layout(gate.count, tokens, used, gate.columns, gate.rows)[-1]
    work = pool.scratch(size + pool.threads * panel_bytes(max(gate.columns, gate.rows)))
    matrices = gate.address, up.address, down.address
    arrays = address(x), address(ids), address(weights), address(out)
    bad = _experts(pool.control, address(JOBS), work, matrices, *arrays, tokens, used)
    if bad >= 0:
        raise ValueError(f"expert {ids.ravel()[bad]} of token {bad // used}; experts 0 to {gate.count - 1} exist")
    return out


def ffn(pool: Pool, gate: Matrix, up: Matrix, down: Matrix, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """down(SiLU(gate x) * up x) for x[T, K] -> [T, K]: a dense layer or a shared expert."""
    if gate.count != 1:
        raise ValueError(f"ffn takes one matrix each, gate has {gate.count}")
    tokens = len(x)
    ids, weights = np.zeros((tokens, 1), np.int32), np.ones((tokens, 1), np.float32)
    return routed_experts(pool, gate, up, down, x, ids, weights, out)
