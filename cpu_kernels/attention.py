"""What absorbed and expanded attention share: cache pages and queries as float32 tiles, and the checks of arguments."""

import numpy as np
from numba import carray

from .cache import KINDS, PAGE, cache_width, read_row
from .gemm import whole_vectors
from .jit import fast_kernel, kernel
from .memory import f32_at, u8_at, u16_at


@kernel
def _read_rows(rows, count, width, tile, stride):
    for i in range(count):
        target = carray(f32_at(tile + 4 * i * stride), (whole_vectors(width),))
        read_row(rows[i], target[:width])
        for j in range(width, target.size):
            target[j] = 0.0


@kernel
def load_page(page, kind, row_bytes, count, width, tile, stride):
    """The first `count` tokens of the page at this address as float32 rows of `width` values, `stride` floats apart.

    Rows are padded with zeros to whole vectors: products read that far, and 0 x what a scratch memory held may be NaN.
    """
    if kind == 0:
        _read_rows(carray(f32_at(page), (count, width)), count, width, tile, stride)
    elif kind == 1:
        _read_rows(carray(u16_at(page), (count, width)), count, width, tile, stride)
    else:
        _read_rows(carray(u8_at(page), (count, row_bytes)), count, width, tile, stride)


@fast_kernel
def load_query(query, width, scale, out, room):
    """A scaled copy of `width` values, and zeros up to `room`."""
    source, target = carray(f32_at(query), (width,)), carray(f32_at(out), (room,))
    for i in range(width):
        target[i] = source[i] * scale
    for i in range(width, room):
        target[i] = 0.0


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


def check_layer(layer: np.ndarray, width: int, verb: str) -> None:
    """`layer` must be a cache of `width` values per token."""
    if layer.dtype not in KINDS or layer.ndim != 3 or layer.shape[1] != PAGE or not layer.flags.c_contiguous:
        raise ValueError(f"{verb}: {layer.dtype} {layer.shape} is not a contiguous cache layer [pages, {PAGE}, width]")
    if cache_width(layer) != width:
        raise ValueError(f"{verb}: the cache holds {cache_width(layer)} values per token, {width} expected")
