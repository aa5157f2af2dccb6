"""What absorbed and expanded attention share: cache pages as float32 tiles, and the softmax over a stream of tiles.

Scores carry a factor log2(e) from the query's scale on, so that probabilities are powers of two. Per query row the
stream keeps (highest score, sum of 2^(score - highest)) beside the weighted sum: nothing overflows.
"""

import math

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from .cache import PAGE, cache_width, read_row
from .gemm import whole_vectors
from .jit import fast_kernel, kernel

LOG2_E = math.log2(math.e)
LOWEST = np.float32(-1e30)  # below any score, and finite: the difference of two of them is 0, not NaN
KINDS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint8): 2}


def _pointer_to(dtype):
    @intrinsic
    def pointer(typing, address):
        def codegen(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(dtype)(types.int64), codegen

    return pointer


f32_at, u16_at, u8_at, i32_at, i64_at = (
    _pointer_to(dtype) for dtype in (types.float32, types.uint16, types.uint8, types.int32, types.int64)
)


@kernel
def _read_rows(rows, count, width, tile, stride):
    for i in range(count):
        read_row(rows[i], carray(f32_at(tile + 4 * i * stride), (width,)))


@kernel
def load_page(layer, kind, row_bytes, page, count, width, tile, stride):
    """The first `count` tokens of a page as float32 rows of `width` values, `stride` floats apart."""
    at = layer + page * PAGE * row_bytes
    if kind == 0:
        _read_rows(carray(f32_at(at), (count, width)), count, width, tile, stride)
    elif kind == 1:
        _read_rows(carray(u16_at(at), (count, width)), count, width, tile, stride)
    else:
        _read_rows(carray(u8_at(at), (count, row_bytes)), count, width, tile, stride)


@fast_kernel
def load_query(query, width, scale, out):
    """A scaled copy, padded with zeros to whole vectors."""
    source, target = carray(f32_at(query), (width,)), carray(f32_at(out), (whole_vectors(width),))
    for i in range(width):
        target[i] = source[i] * scale
    for i in range(width, target.size):
        target[i] = 0.0


@fast_kernel
def exp2(x):
    """2^x for x <= 0, relative error below 3e-7; 2^-126 for anything smaller."""
    if x < np.float32(-126.0):
        x = np.float32(-126.0)
    whole = np.floor(x + np.float32(0.5))
    f = x - whole  # -0.5 .. 0.5: ln(2)^k / k! is enough
    power = np.float32(1.5403530393381608e-4)
    power = power * f + np.float32(1.3333558146428443e-3)
    power = power * f + np.float32(9.618129107628477e-3)
    power = power * f + np.float32(5.5504108664821576e-2)
    power = power * f + np.float32(2.402265069591007e-1)
    power = power * f + np.float32(6.931471805599453e-1)
    power = power * f + np.float32(1.0)
    return power * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@fast_kernel
def softmax_tile(scores, visible, keys, state, out, width):
    """A row's scores[keys] become probabilities, 0 from `visible` on; state and out[width] move to the new highest."""
    row, peak = carray(f32_at(scores), (keys,)), carray(f32_at(state), (2,))
    highest = peak[0]
    for j in range(visible):
        if row[j] > highest:
            highest = row[j]
    if highest > peak[0]:
        factor = exp2(peak[0] - highest)
        weighted = carray(f32_at(out), (width,))
        for i in range(width):
            weighted[i] *= factor
        peak[0] = highest
        peak[1] *= factor
    total = np.float32(0.0)
    for j in range(visible):
        probability = exp2(row[j] - highest)
        row[j] = probability
        total += probability
    for j in range(visible, keys):
        row[j] = 0.0
    peak[1] += total


@kernel
def clear_rows(state, out, stride, rows):
    """Nothing attended yet."""
    peaks = carray(f32_at(state), (rows, 2))
    for r in range(rows):
        peaks[r, 0], peaks[r, 1] = LOWEST, 0.0
    sums = carray(f32_at(out), (rows * stride,))
    for i in range(sums.size):
        sums[i] = 0.0


@kernel
def _pages_exist(table, sequence, positions, pages):
    """False if a token's sequence, position or a page that it reads lies outside."""
    checked_sequence, checked = -1, 0
    for t in range(positions.size):
        if not (0 <= sequence[t] < table.shape[0] and 0 <= positions[t] < table.shape[1] * PAGE):
            return False
        if sequence[t] != checked_sequence:
            checked_sequence, checked = sequence[t], 0
        for p in range(checked, positions[t] // PAGE + 1):
            if not 0 <= table[checked_sequence, p] < pages:
                return False
            checked = p + 1
    return True


def check_context(block_table: np.ndarray, sequence: np.ndarray, positions: np.ndarray, pages: int, verb: str) -> None:
    """Native code reads what these say: every page must exist."""
    if not block_table.dtype == sequence.dtype == positions.dtype == np.int32:
        raise ValueError(f"{verb}: block table, sequence and positions must be int32")
    if block_table.ndim != 2 or positions.ndim != 1 or sequence.shape != positions.shape:
        found = f"block table {block_table.shape}, sequence {sequence.shape}, positions {positions.shape}"
        raise ValueError(f"{verb}: {found}; [S, P], [T] and [T] expected")
    if not (block_table.flags.c_contiguous and sequence.flags.c_contiguous and positions.flags.c_contiguous):
        raise ValueError(f"{verb}: block table, sequence and positions must be contiguous")
    if not _pages_exist(block_table, sequence, positions, pages):
        raise ValueError(f"{verb}: a sequence, a position or a page lies outside the block table or the {pages} pages")


def check_layer(layer: np.ndarray, q: np.ndarray, width: int, verb: str) -> None:
    """`layer` must be a cache of `width` values per token, `q` float32 and contiguous."""
    if layer.dtype not in KINDS or layer.ndim != 3 or layer.shape[1] != PAGE or not layer.flags.c_contiguous:
        raise ValueError(f"{verb}: {layer.dtype} {layer.shape} is not a contiguous cache layer [pages, {PAGE}, width]")
    if cache_width(layer) != width:
        raise ValueError(f"{verb}: the cache holds {cache_width(layer)} values per token, {width} expected")
    if q.ndim != 3 or q.dtype != np.float32 or not q.flags.c_contiguous:
        raise ValueError(f"{verb}: q must be a contiguous float32 [T, H, values], got {q.dtype} {q.shape}")
