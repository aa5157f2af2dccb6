"""Absorbed multi-head latent attention: queries multiplied by W_uk attend the cached latents themselves.

T tokens, H heads, C latent (512) and R rope values. Row t * H + h is head h of token t: 2C + R multiply-adds per cached
token and row, and one conversion of the page for up to 32 rows. Work is cut into (block of rows, split of the keys),
and the splits of a row are merged afterwards. Splits lie at fixed positions, whatever the batch and the context: a
token's result is the same bit for bit alone and among others. Only large numbers of threads move them.
"""

import numpy as np
from numba import carray

from .atomic import fetch_add
from .attention import check_context, check_layer, load_page, load_query
from .cache import KINDS, PAGE
from .gemm import multiply_add, multiply_transposed, prefetch, row_stride, whole_vectors
from .jit import entry, fast_kernel, job, kernel
from .matrix import address
from .memory import f32_at, i32_at, i64_at
from .pool import CHUNK, Pool, dispatch
from .rows import bits
from .softmax import LOWEST, clear_rows, scalar_exp, softmax_tile

ROW_BLOCK = 32
SCORE_STRIDE = PAGE + 16
SCORED = 16  # keys at a time; the next page is fetched in as many steps
# Splits are of one page up to `steady` of them; beyond, they double where the depth doubles: the longest is a
# 1 / steady of the depth, and their number grows with its logarithm only. A split's result is written and read again:
# 64 splits of a page cost a quarter more than 20 longer ones (lite, depth 4096, f16, one Zen 4 core).
FEWEST = 8  # the least `steady`; machines with many threads have more, so that there is work for all at one token
PARTIAL_BYTES = 32 << 20  # the splits' results of as many tokens as fit are held before they are merged

# The int64 arguments of the entry and its jobs. SCALE holds the bits of a float64; from COUNTER on they are working
# memory of the entry.
(ATTEND, MERGE, QUERY, QUERY_ROPE, TOKEN_STRIDE, HEAD_STRIDE, POSITIONS, SEQUENCE, TOKENS, HEADS, LATENT, ROPE, SCALE,
 LAYER, KIND, ROW_BYTES, TABLE, TABLE_PAGES, STEADY, BLOCKS, PARTIAL, PARTIAL_SIZE, SCRATCH, SCRATCH_BYTES, OUT,
 COUNTER, STATE, BLOCK_COUNT, SPLITS, FIRST_ROW, ROWS) = range(31)  # fmt: skip


@kernel
def split_start(split, steady):
    """Position at which a split begins: `steady` splits of a page, then steady / 2 of each further length."""
    if split < steady:
        return split * PAGE
    doublings, within = (split - steady) // (steady // 2), (split - steady) % (steady // 2)
    return (steady * PAGE << doublings) + within * (2 * PAGE << doublings)


@kernel
def split_count(keys, steady):
    """How many splits positions 0 .. keys - 1 lie in."""
    end, length, count = steady * PAGE, 2 * PAGE, steady
    if keys <= end:
        return -(-keys // PAGE)
    while keys > 2 * end:
        end, length, count = 2 * end, 2 * length, count + steady // 2
    return count - (end - keys) // length


@kernel
def partial_floats(heads, latent, splits):
    """Of one token: for every split and head the weighted sum, and the softmax state."""
    return heads * splits * (whole_vectors(latent) + 2)


@kernel
def _load_queries(a, row, rows, queries, stride):
    """Scaled rows latent | rope, padded with zeros to whole vectors."""
    scale = np.float32(np.int64(a[SCALE]).view(np.float64))
    latent, rope = a[LATENT], a[ROPE]
    room = whole_vectors(latent + rope) - latent
    for r in range(rows):
        token, head = (row + r) // a[HEADS], (row + r) % a[HEADS]
        at = queries + 4 * r * stride
        load_query(a[QUERY] + 4 * latent * (row + r), latent, scale, at, latent)
        load_query(a[QUERY_ROPE] + token * a[TOKEN_STRIDE] + head * a[HEAD_STRIDE], rope, scale, at + 4 * latent, room)


@kernel
def _score(a, queries, rows, tile, scores, count, following):
    """The products of all rows with a tile of keys; meanwhile the page at `following` (0: none) comes nearer."""
    width = a[LATENT] + a[ROPE]
    stride = row_stride(width)
    for first in range(0, count, SCORED):
        some = min(SCORED, count - first)
        if following != 0:
            for line in range(following + first * a[ROW_BYTES], following + (first + some) * a[ROW_BYTES], 64):
                prefetch(line)
        to = scores + 4 * first
        multiply_transposed(queries, stride, tile + 4 * first * stride, stride, to, SCORE_STRIDE, rows, some, width)


@kernel
def _page(a, sequence, position):
    """Address of the cached page that holds a position."""
    number = carray(i32_at(a[TABLE] + 4 * sequence * a[TABLE_PAGES]), (a[TABLE_PAGES],))[position // PAGE]
    return a[LAYER] + number * PAGE * a[ROW_BYTES]


@kernel
def _attend(a, block, split, queries, following):
    """One block of rows over one split of its sequence's keys."""
    row, rows, sequence = block[0], block[1], block[2]
    width, columns = a[LATENT] + a[ROPE], whole_vectors(a[LATENT])
    stride = row_stride(width)
    tile = queries + 4 * ROW_BLOCK * stride
    scores = tile + 4 * PAGE * stride
    partial_row = split * a[ROWS] + row - a[FIRST_ROW]
    state, sums = a[STATE] + 8 * partial_row, a[PARTIAL] + 4 * columns * partial_row
    positions = carray(i32_at(a[POSITIONS]), (a[TOKENS],))
    _load_queries(a, row, rows, queries, stride)
    clear_rows(state, sums, columns, rows)
    end = min(block[3], split_start(split + 1, a[STEADY]))
    for start in range(split_start(split, a[STEADY]), end, PAGE):
        count = min(PAGE, end - start)
        load_page(_page(a, sequence, start), a[KIND], a[ROW_BYTES], count, width, tile, stride)
        following = _page(a, sequence, start + PAGE) if start + PAGE < end else following
        _score(a, queries, rows, tile, scores, count, following)
        for r in range(rows):
            visible = min(count, max(0, positions[(row + r) // a[HEADS]] + 1 - start))
            at = scores + 4 * r * SCORE_STRIDE
            softmax_tile(at, visible, count, state + 8 * r, sums + 4 * r * columns, columns)
        multiply_add(scores, SCORE_STRIDE, tile, stride, sums, columns, rows, a[LATENT], count)


@kernel
def _take(a):
    """The next unit that has keys, -1 if there is none. The last splits come first: they are the longest."""
    blocks = carray(i64_at(a[BLOCKS]), (a[BLOCK_COUNT], 4))
    unit = fetch_add(a[COUNTER], 1)
    while unit < a[BLOCK_COUNT] * a[SPLITS]:
        if split_start(a[SPLITS] - 1 - unit // a[BLOCK_COUNT], a[STEADY]) < blocks[unit % a[BLOCK_COUNT], 3]:
            return unit
        unit = fetch_add(a[COUNTER], 1)
    return -1


@job
def _attend_job(arguments, thread, threads):
    a = carray(i64_at(arguments), (ROWS + 1,))
    blocks = carray(i64_at(a[BLOCKS]), (a[BLOCK_COUNT], 4))
    scratch = a[SCRATCH] + thread * a[SCRATCH_BYTES]
    unit = _take(a)
    while unit >= 0:
        following, page = _take(a), 0
        if following >= 0:
            start = split_start(a[SPLITS] - 1 - following // a[BLOCK_COUNT], a[STEADY])
            page = _page(a, blocks[following % a[BLOCK_COUNT], 2], start)
        _attend(a, blocks[unit % a[BLOCK_COUNT]], a[SPLITS] - 1 - unit // a[BLOCK_COUNT], scratch, page)
        unit = following


@fast_kernel
def _merge_row(a, row):
    """The splits of one row, weighted by e^(their highest score - the highest of all), in the order of the keys."""
    columns, splits = whole_vectors(a[LATENT]), a[SPLITS]
    used = split_count(carray(i32_at(a[POSITIONS]), (a[TOKENS],))[row // a[HEADS]] + 1, a[STEADY])
    state = carray(f32_at(a[STATE]), (splits, a[ROWS], 2))
    partial = carray(f32_at(a[PARTIAL]), (splits, a[ROWS], columns))
    out = carray(f32_at(a[OUT] + 4 * row * a[LATENT]), (a[LATENT],))
    r = row - a[FIRST_ROW]
    highest, total = LOWEST, np.float32(0.0)
    for s in range(used):
        highest = max(highest, state[s, r, 0])
    for s in range(used):
        state[s, r, 0] = scalar_exp(state[s, r, 0] - highest)
        total += state[s, r, 0] * state[s, r, 1]
    for i in range(out.size):
        out[i] = 0.0
    for s in range(used):
        weight = state[s, r, 0] / total
        for i in range(out.size):
            out[i] += weight * partial[s, r, i]


@job
def _merge_job(arguments, thread, threads):
    a = carray(i64_at(arguments), (ROWS + 1,))
    row = fetch_add(a[COUNTER], 1)
    while row < a[ROWS]:
        _merge_row(a, a[FIRST_ROW] + row)
        row = fetch_add(a[COUNTER], 1)


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


@entry
def _absorbed(control, arguments):
    """Groups of tokens one after another, so that the memory for partial results stays bounded."""
    a = carray(i64_at(arguments), (ROWS + 1,))
    tokens, heads = a[TOKENS], a[HEADS]
    positions, sequence = carray(i32_at(a[POSITIONS]), (tokens,)), carray(i32_at(a[SEQUENCE]), (tokens,))
    deepest = 0
    for t in range(tokens):
        deepest = max(deepest, positions[t] + 1)
    a[COUNTER], a[SPLITS] = control + CHUNK, split_count(deepest, a[STEADY])
    group = max(1, min(tokens, a[PARTIAL_SIZE] // (4 * partial_floats(heads, a[LATENT], a[SPLITS]))))
    a[STATE] = a[PARTIAL] + 4 * group * heads * a[SPLITS] * whole_vectors(a[LATENT])
    blocks = carray(i64_at(a[BLOCKS]), (tokens * heads // ROW_BLOCK + tokens, 4))
    for first in range(0, tokens, group):
        end = min(first + group, tokens)
        a[FIRST_ROW], a[ROWS] = first * heads, (end - first) * heads
        a[BLOCK_COUNT] = _plan(sequence, positions, heads, first, end, blocks)
        dispatch(control, a[ATTEND], arguments)
        dispatch(control, a[MERGE], arguments)


def _check_query(q: np.ndarray, q_rope: np.ndarray, tokens: int) -> None:
    if q.ndim != 3 or q.dtype != np.float32 or not q.flags.c_contiguous or not q.shape[2]:
        raise ValueError(f"mla_absorbed: q must be a contiguous float32 [T, H, C], got {q.dtype} {q.shape}")
    if q_rope.ndim != 3 or q_rope.dtype != np.float32 or (q_rope.size and q_rope.strides[2] != 4):
        raise ValueError(f"mla_absorbed: q_rope must be float32 [T, H, R], R contiguous, got {q_rope.shape}")
    if q_rope.shape[:2] != q.shape[:2] or len(q) != tokens:
        raise ValueError(f"mla_absorbed: q {q.shape}, q_rope {q_rope.shape} and {tokens} positions do not fit")


def mla_absorbed(
    pool: Pool,
    q: np.ndarray,
    q_rope: np.ndarray,
    layer: np.ndarray,
    block_table: np.ndarray,
    sequence: np.ndarray,
    positions: np.ndarray,
    scale: float,
) -> np.ndarray:
    """q[T, H, C], q_rope[T, H, R] with any outer strides -> [T, H, C]: t attends 0 .. positions[t] of sequence[t].

    block_table int32 [S, P] lists the pages of each sequence; sequence and positions are int32 [T].
    """
    _check_query(q, q_rope, len(positions))
    (tokens, heads, latent), rope = q.shape, q_rope.shape[2]
    check_layer(layer, latent + rope, "mla_absorbed")
    check_context(block_table, sequence, positions, len(layer), "mla_absorbed")
    out = pool.results.empty((tokens, heads, latent))
    if not tokens:
        return out
    steady = max(FEWEST, pool.threads // -(-heads // ROW_BLOCK) * 2)
    # A recorded call may come to any position that the table has room for.
    most = 4 * int(partial_floats(heads, latent, split_count(block_table.shape[1] * PAGE, steady)))
    partial, blocks = min(tokens * most, max(PARTIAL_BYTES, most)), 32 * (tokens * heads // ROW_BLOCK + tokens)
    thread_bytes = 4 * int(ROW_BLOCK * (row_stride(latent + rope) + SCORE_STRIDE) + PAGE * row_stride(latent + rope))
    a = np.zeros(ROWS + 1, np.int64)
    a[ATTEND], a[MERGE] = _attend_job.address, _merge_job.address
    a[QUERY], a[QUERY_ROPE], a[TOKEN_STRIDE], a[HEAD_STRIDE] = address(q), address(q_rope), *q_rope.strides[:2]
    a[POSITIONS], a[SEQUENCE] = address(positions), address(sequence)
    a[TOKENS : SCALE + 1] = tokens, heads, latent, rope, bits(scale)
    a[LAYER], a[KIND], a[ROW_BYTES] = address(layer), KINDS[layer.dtype], layer.strides[1]
    a[TABLE], a[TABLE_PAGES], a[STEADY] = address(block_table), block_table.shape[1], steady
    a[SCRATCH] = pool.scratch(pool.threads * thread_bytes + partial + blocks)
    a[SCRATCH_BYTES], a[PARTIAL], a[PARTIAL_SIZE] = thread_bytes, a[SCRATCH] + pool.threads * thread_bytes, partial
    a[BLOCKS], a[OUT] = a[PARTIAL] + partial, address(out)
    pool.call(_absorbed.address, a, q, q_rope, layer, block_table, sequence, positions, out)
    return out
