"""Absorbed multi-head latent attention: queries multiplied by W_uk attend the cached latents themselves.

T tokens, H heads, C latent (512) and R rope values. Row t * H + h is head h of token t: 2C + R multiply-adds per cached
token and row, and one conversion of the page for up to 32 rows. Work is cut into (block of rows, split of the keys),
and the splits of a row are merged afterwards. Splits depend on the longest context of the call only, so the number of
threads changes nothing in the result.
"""

import numpy as np
from numba import carray

from .atomic import fetch_add
from .attention import (
    KINDS,
    check_context,
    check_layer,
    load_page,
    load_query,
)
from .cache import PAGE
from .gemm import multiply_add, multiply_transposed, row_stride, whole_vectors
from .jit import fast_kernel, job, kernel
from .memory import f32_at, i32_at, i64_at
from .pool import CHUNK, Pool, dispatch
from .softmax import LOWEST, clear_rows, scalar_exp, softmax_tile

ROW_BLOCK = 32
SCORE_STRIDE = PAGE + 16
SPLIT_PAGES, MOST_SPLITS = 4, 64
PARTIAL_BYTES = 32 << 20  # the splits' results of as many tokens as fit are held before they are merged
MERGE_ROWS = 8

# The jobs' int64 arguments. SCALE holds the bits of a float64.
(COUNTER, QUERY, POSITIONS, HEADS, WIDTH, LATENT, SCALE, LAYER, KIND, ROW_BYTES, TABLE, TABLE_PAGES, BLOCKS,
 BLOCK_COUNT, SPLITS, SPLIT_KEYS, FIRST_ROW, ROWS, PARTIAL, STATE, SCRATCH, SCRATCH_BYTES, OUT) = range(23)  # fmt: skip


@kernel
def _attend(a, block, split, queries):
    """One block of rows over one split of its sequence's keys."""
    row, rows, sequence, keys = block[0], block[1], block[2], block[3]
    stride = row_stride(a[WIDTH])
    tile = queries + 4 * ROW_BLOCK * stride
    scores = tile + 4 * PAGE * stride
    width, columns = a[WIDTH], whole_vectors(a[LATENT])
    partial_row = split * a[ROWS] + row - a[FIRST_ROW]
    state, sums = a[STATE] + 8 * partial_row, a[PARTIAL] + 4 * columns * partial_row
    positions = carray(i32_at(a[POSITIONS]), (row + rows,))
    pages = carray(i32_at(a[TABLE] + 4 * sequence * a[TABLE_PAGES]), (a[TABLE_PAGES],))
    scale = np.float32(np.int64(a[SCALE]).view(np.float64))
    for r in range(rows):
        load_query(a[QUERY] + 4 * width * (row + r), width, scale, queries + 4 * r * stride)
    clear_rows(state, sums, columns, rows)
    for start in range(split * a[SPLIT_KEYS], min(keys, (split + 1) * a[SPLIT_KEYS]), PAGE):
        count = min(PAGE, keys - start)
        load_page(a[LAYER], a[KIND], a[ROW_BYTES], pages[start // PAGE], count, width, tile, stride)
        multiply_transposed(queries, stride, tile, stride, scores, SCORE_STRIDE, rows, count, width)
        for r in range(rows):
            visible = min(count, max(0, positions[(row + r) // a[HEADS]] + 1 - start))
            at = scores + 4 * r * SCORE_STRIDE
            softmax_tile(at, visible, count, state + 8 * r, sums + 4 * r * columns, columns)
        multiply_add(scores, SCORE_STRIDE, tile, stride, sums, columns, rows, a[LATENT], count)


@job
def _attend_job(arguments, thread, threads):
    a = carray(i64_at(arguments), (OUT + 1,))
    blocks = carray(i64_at(a[BLOCKS]), (a[BLOCK_COUNT], 4))
    scratch = a[SCRATCH] + thread * a[SCRATCH_BYTES]
    unit = fetch_add(a[COUNTER], 1)
    while unit < a[BLOCK_COUNT] * a[SPLITS]:
        block, split = blocks[unit // a[SPLITS]], unit % a[SPLITS]
        if split * a[SPLIT_KEYS] < block[3]:
            _attend(a, block, split, scratch)
        unit = fetch_add(a[COUNTER], 1)


@fast_kernel
def _merge_row(a, row):
    """The splits of one row, weighted by e^(their highest score - the highest of all), in the order of the keys."""
    columns, splits = whole_vectors(a[LATENT]), a[SPLITS]
    used = (carray(i32_at(a[POSITIONS]), (row + 1,))[row // a[HEADS]] + a[SPLIT_KEYS]) // a[SPLIT_KEYS]
    state = carray(f32_at(a[STATE]), (splits, a[ROWS], 2))
    partial = carray(f32_at(a[PARTIAL]), (splits, a[ROWS], columns))
    out = carray(f32_at(a[OUT] + 4 * row * a[LATENT]), (a[LATENT],))
    r = row - a[FIRST_ROW]
    highest, total = LOWEST, np.float32(0.0)
    for s in range(used):
        highest = max(highest, state[s, r, 0])
    for s in range(used):
        total += scalar_exp(state[s, r, 0] - highest) * state[s, r, 1]
    for i in range(out.size):
        out[i] = 0.0
    for s in range(used):
        weight = scalar_exp(state[s, r, 0] - highest) / total
        for i in range(out.size):
            out[i] += weight * partial[s, r, i]


@job
def _merge_job(arguments, thread, threads):
    a = carray(i64_at(arguments), (OUT + 1,))
    first = MERGE_ROWS * fetch_add(a[COUNTER], 1)
    while first < a[ROWS]:
        for row in range(first, min(first + MERGE_ROWS, a[ROWS])):
            _merge_row(a, a[FIRST_ROW] + row)
        first = MERGE_ROWS * fetch_add(a[COUNTER], 1)


@kernel
def _plan(sequence, positions, heads, first, end, blocks):
    """Cut the rows of tokens first .. end - 1 into blocks (row, rows, sequence, keys) of one sequence; their number."""
    count = 0
    while first < end:
        after = first + 1
        while after < end and sequence[after] == sequence[first]:
            after += 1
        for row in range(first * heads, after * heads, ROW_BLOCK):
            rows = min(ROW_BLOCK, after * heads - row)
            keys = 0
            for t in range(row // heads, (row + rows - 1) // heads + 1):
                keys = max(keys, positions[t] + 1)
            blocks[count, 0], blocks[count, 1], blocks[count, 2], blocks[count, 3] = row, rows, sequence[first], keys
            count += 1
        first = after
    return count


@kernel
def _run(control, jobs, a, q, positions, sequence, table, layer, out, group):
    """Groups of tokens one after another, so that the memory for partial results stays bounded."""
    tokens, heads = q.shape[0], q.shape[1]
    blocks = np.empty((group * heads // ROW_BLOCK + group, 4), np.int64)
    a[COUNTER], a[BLOCKS] = control + CHUNK, blocks.ctypes.data
    a[QUERY], a[POSITIONS], a[TABLE] = q.ctypes.data, positions.ctypes.data, table.ctypes.data
    a[LAYER], a[OUT] = layer.ctypes.data, out.ctypes.data
    for first in range(0, tokens, group):
        end = min(first + group, tokens)
        a[FIRST_ROW], a[ROWS] = first * heads, (end - first) * heads
        a[BLOCK_COUNT] = _plan(sequence, positions, heads, first, end, blocks)
        dispatch(control, jobs[0], a.ctypes.data)
        dispatch(control, jobs[1], a.ctypes.data)


def mla_absorbed(
    pool: Pool,
    q: np.ndarray,
    layer: np.ndarray,
    block_table: np.ndarray,
    sequence: np.ndarray,
    positions: np.ndarray,
    scale: float,
    latent: int,
) -> np.ndarray:
    """q[T, H, C + R] -> [T, H, C]: token t attends positions 0 .. positions[t] of sequence[t].

    `latent` is C; block_table int32 [S, P] lists the pages of each sequence; sequence and positions are int32 [T].
    """
    check_layer(layer, q, q.shape[-1], "mla_absorbed")
    check_context(block_table, sequence, positions, len(layer), "mla_absorbed")
    tokens, heads, width = q.shape
    if len(positions) != tokens or not 0 < latent <= width:
        raise ValueError(f"mla_absorbed: q {q.shape}, {len(positions)} positions and {latent} latent values do not fit")
    out = np.empty((tokens, heads, latent), np.float32)
    if not tokens:
        return out
    keys = int(positions.max()) + 1
    split_keys = PAGE * max(SPLIT_PAGES, -(-keys // (PAGE * MOST_SPLITS)))
    splits = -(-keys // split_keys)
    sum_bytes, state_bytes = 4 * splits * heads * whole_vectors(latent), 8 * splits * heads  # of one token
    group = max(1, min(tokens, PARTIAL_BYTES // (sum_bytes + state_bytes)))
    thread_bytes = 4 * (ROW_BLOCK * (row_stride(width) + SCORE_STRIDE) + PAGE * row_stride(width))
    scratch = pool.scratch(group * (sum_bytes + state_bytes) + pool.threads * thread_bytes)
    a = np.zeros(OUT + 1, np.int64)
    a[HEADS : SCALE + 1] = heads, width, latent, np.float64(scale).view(np.int64)
    a[KIND], a[ROW_BYTES], a[TABLE_PAGES] = KINDS[layer.dtype], layer.strides[1], block_table.shape[1]
    a[SPLITS], a[SPLIT_KEYS], a[SCRATCH_BYTES] = splits, split_keys, thread_bytes
    a[SCRATCH], a[PARTIAL] = scratch, scratch + pool.threads * thread_bytes
    a[STATE] = a[PARTIAL] + group * sum_bytes
    jobs = _attend_job.address, _merge_job.address
    _run(pool.control, jobs, a, q, positions, sequence, block_table, layer.view(np.uint8), out, group)
    return out
