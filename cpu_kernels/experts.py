"""Feed-forward networks: routed experts with the shared one in the same pool job, and the dense FFN as one expert.

T tokens, k experts a token, E experts, K columns, F rows of gate and up. A pair is (token, chosen expert); pairs are
sorted by expert. The job's phases, with a barrier between:
    quantize   x
    hidden     units of 32 rows of an expert's gate and up: products, SiLU(gate) · up, quantized for the next phase
    output     units of rows of K: for every expert its down product, added to the tokens' outputs times their weights
A token's output is `residual`, plus its experts in ascending order of their numbers, plus the shared expert; computed
by one thread: nothing depends on the number of threads or on the other tokens.
"""

import numpy as np
from numba.extending import register_jitable

from .activation import RECORD_BYTES, quantize_block
from .atomic import fetch_add, load_i64, store_i64
from .control import CHUNK, THREADS, barrier, dispatch
from .groups import matrix_groups, multiply_rows
from .jit import device, entry, job
from .machine import LANES
from .matmul import check_rows, result
from .matrix import COLUMNS, COUNT, FLAGS, FLOAT, ROWS, X16, Matrix, address
from .pool import Pool
from .product import FEW, column_space, quantize_share, thread_bytes, unit_groups
from .simd import exp, fdiv, fma, load_f32, load_f32x8, load_i32, store

BLOCK = 32  # rows of gate and up that make a block of quantized hidden values
WIDTH = 64  # columns at a time, or fewer of many rows: their gate, up or down values stay in the cache
FLOATS = 8192  # room for those values

# Of a unit: row groups of the output, and blocks of hidden values where few tokens make long runs of weights better.
MOST_GROUPS, MOST_BLOCKS = 8, 8
SPACE_BYTES = 4 * FLOATS + 8 * WIDTH

# Fields of an active expert: its part of the sorted pairs, its matrices, and the first unit of its hidden phase.
GATE, UP, DOWN, INDEX, PAIRS, COUNT_PAIRS, UNITS = range(0, 56, 8)
ACTIVE_BYTES = 64
# Arguments of the job. Per pair, in sorted order: where x, quantized or not, and the hidden values lie, out's row, the
# weight (float32). H_BYTES: 0 where hidden values stay float32.
(
    _CONTROL, _TOKENS, _VALUES, _SOURCES, _TARGETS, _QUANTIZED, _ACTIVE, _ACTIVE_COUNT, _HIDDEN_UNITS, _OUTPUT_GROUPS,
    _X_FLOAT, _X_CODES, _HIDDEN, _OUT, _WEIGHTS, _RESIDUAL, _OUT_BASE, _OUTPUT_COUNTER, _WORKS, _WORK_BYTES,
    _UNIT_BLOCKS,
) = range(0, 168, 8)  # fmt: skip
JOB_BYTES = 192


@device
def _silu_products(gate, up, values):
    """gate = gate / (1 + e^-gate) · up, 8 values at a time; `values`: a multiple of 8."""
    for at in range(0, 4 * values, 32):
        g = load_f32x8(gate + at)
        store(gate + at, fdiv(g, exp(g * np.float32(-1.0)) + np.float32(1.0)) * load_f32x8(up + at))


@device
def _hidden_unit(arguments, active, unit, work, space):
    """Some blocks of one expert's gate and up, for all its columns; `space`: SPACE_BYTES."""
    gate, up, index = load_i64(active + GATE), load_i64(active + UP), load_i64(active + INDEX)
    first = 8 * load_i64(active + PAIRS)
    floats, codes = load_i64(arguments + _X_FLOAT) + first, load_i64(arguments + _X_CODES) + first
    hidden = load_i64(arguments + _HIDDEN) + first
    blocks = load_i64(arguments + _UNIT_BLOCKS)
    block = unit * blocks
    group = 2 * block
    groups = min(2 * blocks, matrix_groups(gate) - group)
    rows = min(BLOCK * blocks, load_i64(gate + ROWS) - BLOCK * block)
    row_bytes, width = 4 * BLOCK * blocks, min(WIDTH, FLOATS // (2 * BLOCK * blocks))
    gates, ups, lists = space, space + width * row_bytes, space + 4 * FLOATS
    is_float = load_i64(load_i64(active + DOWN) + FLAGS) & FLOAT
    for done in range(0, load_i64(active + COUNT_PAIRS), width):
        count = min(width, load_i64(active + COUNT_PAIRS) - done)
        x_gate = (floats if load_i64(gate + FLAGS) & FLOAT else codes) + 8 * done
        x_up = (floats if load_i64(up + FLAGS) & FLOAT else codes) + 8 * done
        for c in range(count):
            store_i64(lists + 8 * c, gates + row_bytes * c)
        multiply_rows(gate, index, group, groups, count, x_gate, lists, 0, work)
        multiply_rows(up, index, group, groups, count, x_up, lists, ups - gates, work)
        _silu_products(gates, ups, BLOCK * blocks * count)
        for c in range(count):
            target = load_i64(hidden + 8 * (done + c))
            if is_float:
                for r in range(rows):
                    store(target + 4 * (BLOCK * block + r), load_f32(gates + row_bytes * c + 4 * r))
            else:
                for b in range(rows // BLOCK):
                    source = gates + row_bytes * c + 4 * BLOCK * b
                    quantize_block(source, target + RECORD_BYTES * (block + b))


@device
def _add_weighted(values, rows, weight, out):
    """out += weight · values"""
    for at in range(0, 4 * rows - 31, 32):
        store(out + at, fma(load_f32x8(values + at), weight, load_f32x8(out + at)))
    for at in range(rows // 8 * 32, 4 * rows, 4):
        store(out + at, load_f32(out + at) + load_f32(values + at) * weight)


@device
def _start_output(arguments, first, rows):
    """Rows `first` .. of every token's output: 0, or the residual, which may lie in the same place."""
    values, residual = load_i64(arguments + _VALUES), load_i64(arguments + _RESIDUAL)
    out = load_i64(arguments + _OUT_BASE)
    for token in range(load_i64(arguments + _TOKENS)):
        at = 4 * (token * values + first)
        for r in range(at, at + 4 * rows, 4):
            store(out + r, load_f32(residual + r) if residual else np.float32(0.0))


@device
def _output_unit(arguments, group, groups, work, space):
    """Rows 16·group .. of the output: the residual, and every active expert's share."""
    active = load_i64(arguments + _ACTIVE)
    rows = min(LANES * groups, load_i64(arguments + _VALUES) - LANES * group)
    _start_output(arguments, LANES * group, rows)
    lists, width = space + 4 * FLOATS, min(WIDTH, FLOATS // (LANES * groups))
    for _ in range(load_i64(arguments + _ACTIVE_COUNT)):
        down, index = load_i64(active + DOWN), load_i64(active + INDEX)
        for done in range(0, load_i64(active + COUNT_PAIRS), width):
            pair = load_i64(active + PAIRS) + done
            count = min(width, load_i64(active + COUNT_PAIRS) - done)
            for c in range(count):
                store_i64(lists + 8 * c, space + 4 * LANES * groups * c)
            multiply_rows(down, index, group, groups, count, load_i64(arguments + _HIDDEN) + 8 * pair, lists, 0, work)
            for c in range(count):
                out = load_i64(load_i64(arguments + _OUT) + 8 * (pair + c)) + 4 * LANES * group
                weight = load_f32(load_i64(arguments + _WEIGHTS) + 4 * (pair + c))
                _add_weighted(load_i64(lists + 8 * c), rows, weight, out)
        active += ACTIVE_BYTES


@job
def _experts_job(arguments, thread, threads):
    control, tokens = load_i64(arguments + _CONTROL), load_i64(arguments + _TOKENS)
    if load_i64(arguments + _QUANTIZED):
        sources, targets = load_i64(arguments + _SOURCES), load_i64(arguments + _TARGETS)
        quantize_share(tokens, load_i64(arguments + _VALUES), sources, targets, thread, threads)
        barrier(control, thread, threads)
    space = load_i64(arguments + _WORKS) + thread * load_i64(arguments + _WORK_BYTES)
    work = space + SPACE_BYTES
    active, before = load_i64(arguments + _ACTIVE), 0
    units = load_i64(arguments + _HIDDEN_UNITS)
    unit = fetch_add(control + CHUNK, 1)
    while unit < units:
        while unit - before >= load_i64(active + UNITS):
            before += load_i64(active + UNITS)
            active += ACTIVE_BYTES
        _hidden_unit(arguments, active, unit - before, work, space)
        unit = fetch_add(control + CHUNK, 1)
    barrier(control, thread, threads)
    groups = load_i64(arguments + _OUTPUT_GROUPS)
    everything = (load_i64(arguments + _VALUES) + LANES - 1) // LANES
    unit = fetch_add(arguments + _OUTPUT_COUNTER, groups)
    while unit < everything:
        _output_unit(arguments, unit, min(groups, everything - unit), work, space)
        unit = fetch_add(arguments + _OUTPUT_COUNTER, groups)


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
def _activate(active, matrices, index, first, count):
    """Describe an expert with `count` pairs; its blocks of hidden values."""
    store_i64(active + GATE, load_i64(matrices))
    store_i64(active + UP, load_i64(matrices + 8))
    store_i64(active + DOWN, load_i64(matrices + 16))
    store_i64(active + INDEX, index)
    store_i64(active + PAIRS, first)
    store_i64(active + COUNT_PAIRS, count)
    return (matrix_groups(load_i64(matrices)) + 1) // 2


@device
def _plan_hidden(active, count, columns, blocks, threads):
    """Blocks of a unit of the hidden phase, given all experts' `blocks`; units of every expert; their sum."""
    size = min(MOST_BLOCKS, blocks // (8 * threads)) if columns <= FEW else 1
    for i in range(count):
        if not load_i64(load_i64(active + i * ACTIVE_BYTES + GATE) + FLAGS) & X16:
            size = 1  # there is room for two interleaved groups
    size, units = max(1, size), 0
    for i in range(count):
        gate = load_i64(active + i * ACTIVE_BYTES + GATE)
        share = -(-matrix_groups(gate) // (2 * size))
        store_i64(active + i * ACTIVE_BYTES + UNITS, share)
        units += share
    return size, units


@register_jitable
def _hidden_space(rows):
    """Bytes of a pair's hidden values: f32, or less when quantized; a multiple of 64."""
    return (4 * rows + 63) // 64 * 64


@register_jitable
def _layout(experts, tokens, used, values, hidden, shared_hidden):
    """Offsets into working memory: sorting, lists of tokens, active experts, lists of pairs, x, hidden values; end."""
    pairs = tokens * used + (tokens if shared_hidden else 0)
    ends = JOB_BYTES
    lists = ends + 8 * experts + 8 * pairs
    active = (lists + 16 * tokens + 63) // 64 * 64
    per_pair = active + ACTIVE_BYTES * (min(experts, tokens * used) + 1)
    x_codes = (per_pair + 36 * pairs + 63) // 64 * 64
    hidden_at = x_codes + tokens * ((values // 32 * RECORD_BYTES + 63) // 64 * 64)
    end = hidden_at + tokens * used * _hidden_space(hidden) + tokens * _hidden_space(shared_hidden)
    return ends, lists, active, per_pair, x_codes, hidden_at, end


@device
def _fill_pair(lists, pairs, at, token, x, x_codes, values, hidden, out, weight):
    store_i64(lists + 8 * at, x + 4 * token * values)
    store_i64(lists + 8 * (pairs + at), x_codes + token * column_space(values))
    store_i64(lists + 8 * (2 * pairs + at), hidden)
    store_i64(lists + 8 * (3 * pairs + at), out + 4 * token * values)
    store(lists + 32 * pairs + 4 * at, weight)


@entry
def _experts(control, arguments):
    """(job, routed gate, up, down, shared gate, up, down or 0, x, ids, weights, residual or 0, out, T, k, working
    memory, bytes of a thread's share of it, [out] the first pair whose id is no expert, or -1)"""
    job, w_gate, shared = load_i64(arguments), load_i64(arguments + 8), load_i64(arguments + 32)
    x, ids, weights = load_i64(arguments + 56), load_i64(arguments + 64), load_i64(arguments + 72)
    out, tokens, used = load_i64(arguments + 88), load_i64(arguments + 96), load_i64(arguments + 104)
    work, work_bytes = load_i64(arguments + 112), load_i64(arguments + 120)
    experts, hidden, values = load_i64(w_gate + COUNT), load_i64(w_gate + ROWS), load_i64(w_gate + COLUMNS)
    shared_hidden = load_i64(shared + ROWS) if shared else 0
    offsets = _layout(experts, tokens, used, values, hidden, shared_hidden)
    ends, sources, active, lists = work + offsets[0], work + offsets[1], work + offsets[2], work + offsets[3]
    x_codes, hidden_at = work + offsets[4], work + offsets[5]
    targets, order = sources + 8 * tokens, ends + 8 * experts
    routed = tokens * used
    pairs = routed + (tokens if shared else 0)

    bad = _sort_pairs(ids, routed, experts, ends, order)
    store_i64(arguments + 128, bad)
    if bad >= 0:
        return
    for i in range(routed):
        pair = load_i64(order + 8 * i)
        h, weight = hidden_at + i * _hidden_space(hidden), load_f32(weights + 4 * pair)
        _fill_pair(lists, pairs, i, pair // used, x, x_codes, values, h, out, weight)
    for token in range(tokens):
        store_i64(sources + 8 * token, x + 4 * token * values)
        store_i64(targets + 8 * token, x_codes + token * column_space(values))
        if shared:
            h = hidden_at + routed * _hidden_space(hidden) + token * _hidden_space(shared_hidden)
            _fill_pair(lists, pairs, routed + token, token, x, x_codes, values, h, out, np.float32(1.0))

    blocks, number, start = 0, 0, 0
    for expert in range(experts):
        end = load_i64(ends + 8 * expert)
        if end > start:
            blocks += _activate(active + number * ACTIVE_BYTES, arguments + 8, expert, start, end - start)
            number += 1
        start = end
    quantized = not (load_i64(w_gate + FLAGS) & load_i64(load_i64(arguments + 16) + FLAGS) & FLOAT)
    if shared:
        blocks += _activate(active + number * ACTIVE_BYTES, arguments + 32, 0, routed, tokens)
        number += 1
        quantized |= not (load_i64(shared + FLAGS) & load_i64(load_i64(arguments + 40) + FLAGS) & FLOAT)

    store_i64(work + _CONTROL, control)
    store_i64(work + _TOKENS, tokens)
    store_i64(work + _VALUES, values)
    store_i64(work + _SOURCES, sources)
    store_i64(work + _TARGETS, targets)
    store_i64(work + _QUANTIZED, 1 if quantized else 0)
    store_i64(work + _ACTIVE, active)
    store_i64(work + _ACTIVE_COUNT, number)
    everything, threads = (values + LANES - 1) // LANES, load_i64(control + THREADS)
    columns = pairs // number  # of an expert, on average
    size, units = _plan_hidden(active, number, columns, blocks, threads)
    store_i64(work + _UNIT_BLOCKS, size)
    store_i64(work + _HIDDEN_UNITS, units)
    groups = unit_groups(load_i64(arguments + 24), columns, everything, threads)
    if shared:
        groups = min(groups, unit_groups(load_i64(arguments + 48), columns, everything, threads))
    store_i64(work + _OUTPUT_GROUPS, min(groups, MOST_GROUPS))
    store_i64(work + _X_FLOAT, lists)
    store_i64(work + _X_CODES, lists + 8 * pairs)
    store_i64(work + _HIDDEN, lists + 16 * pairs)
    store_i64(work + _OUT, lists + 24 * pairs)
    store_i64(work + _WEIGHTS, lists + 32 * pairs)
    store_i64(work + _RESIDUAL, load_i64(arguments + 80))
    store_i64(work + _OUT_BASE, out)
    store_i64(work + _OUTPUT_COUNTER, 0)
    store_i64(work + _WORKS, work + (offsets[6] + 63) // 64 * 64)
    store_i64(work + _WORK_BYTES, work_bytes)
    dispatch(control, job, work)


def _check_matrices(gate: Matrix, up: Matrix, down: Matrix) -> None:
    shapes = [(w.count, w.rows, w.columns) for w in (gate, up, down)]
    count, hidden, columns = shapes[0]
    if shapes != [(count, hidden, columns), (count, hidden, columns), (count, columns, hidden)]:
        raise ValueError(
            f"gate, up and down are (count, rows, columns) {shapes}; up must be like gate, down its transpose"
        )


Gated = tuple[Matrix, Matrix, Matrix]  # gate, up and down


def routed_experts(
    pool: Pool,
    routed: Gated,
    x: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
    shared: Gated | None = None,
    residual: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """For each token of x[T, K] the sum over its experts ids[T, k] of weights[T, k] · down(SiLU(gate x) * up x).

    Plus the shared expert's output, plus residual[T, K]; `out` may be the residual itself.
    """
    _check_matrices(*routed)
    gate = routed[0]
    tokens, used = ids.shape
    if ids.dtype != np.int32 or not ids.flags.c_contiguous:
        raise ValueError(f"ids are {ids.dtype} with strides {ids.strides}; needed are C-contiguous int32")
    check_rows("x", x, (tokens, gate.columns))
    check_rows("weights", weights, (tokens, used))
    if not (x.flags.c_contiguous and weights.flags.c_contiguous):
        raise ValueError(f"x and weights must be C-contiguous; their strides are {x.strides} and {weights.strides}")
    if shared is not None:
        _check_matrices(*shared)
        if shared[0].count != 1 or shared[0].columns != gate.columns:
            found = f"{shared[0].count} of {shared[0].columns} columns"
            raise ValueError(f"the shared expert is {found}; needed is 1 of {gate.columns}")
    if residual is not None:
        residual = result(residual, x.shape)
    out = result(out, x.shape)
    if not out.size:
        return out
    _call(pool, (routed, shared), x, ids, weights, residual, out)
    return out


def _call(pool: Pool, networks: tuple[Gated, Gated | None], x, ids, weights, residual, out) -> None:
    routed, shared = networks
    tokens, used = ids.shape
    gate = routed[0]
    layout = _layout(gate.count, tokens, used, gate.columns, gate.rows, shared[0].rows if shared else 0)
    share = SPACE_BYTES + thread_bytes(2, *routed, *(shared or ()))
    work = pool.scratch(layout[-1] + 64 + pool.threads * share)
    matrices = [w.address for w in routed] + ([w.address for w in shared] if shared else [0, 0, 0])
    arrays = address(x), address(ids), address(weights), 0 if residual is None else address(residual), address(out)
    arguments = np.array([_experts_job.address, *matrices, *arrays, tokens, used, work, share, -1], np.int64)
    pool.call(_experts.address, arguments, networks, x, ids, weights, residual, out)
    bad = int(arguments[-1])
    if bad >= 0:
        raise ValueError(f"expert {ids.ravel()[bad]} of token {bad // used}; experts 0 to {gate.count - 1} exist")


def ffn(
    pool: Pool, network: Gated, x: np.ndarray, residual: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """down(SiLU(gate x) * up x) for x[T, K] -> [T, K], plus residual: a dense layer or a shared expert."""
    if network[0].count != 1:
        raise ValueError(f"ffn takes one matrix each, gate has {network[0].count}")
    tokens = len(x)
    ids, weights = np.zeros((tokens, 1), np.int32), np.ones((tokens, 1), np.float32)
    return routed_experts(pool, network, x, ids, weights, None, residual, out)
