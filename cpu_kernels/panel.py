"""Tiles: a few unpacked weight rows times many columns, the same for every format.

A panel row of K values is K codes int8 | K/16 scales f32 | K/16 minima f32 for quantized formats, K f32 for the others.
The register tile is 2 rows x 4 columns; past the end it repeats the last row or column and drops the result.
"""

import numpy as np

from .atomic import load_i64
from .dot import dot_signed
from .jit import device
from .simd import (
    f32_from_i32,
    fma,
    load_f32,
    load_f32x2,
    load_f32x8,
    load_i8x32,
    reduce_add,
    splat_f32x8,
    spread_f32x2,
    store,
)

FLOAT, MINIMUM = 1, 2  # flags of a format
TOTALS_BYTES = 256  # at the head of a panel: the tile's sums on their way out of the registers


@device
def panel_row_bytes(columns, flags):
    return 4 * columns if flags & FLOAT else columns // 2 * 3


@device
def _codes(w, x, scale, x_scale, total):
    """One block of 32: total += scale x x_scale x (codes . codes)."""
    return fma(f32_from_i32(dot_signed(w, x)), scale * load_f32(x_scale), total)


@device
def _minima(w, x, columns):
    """The sum over groups of 16 of minimum x sum; four chains of additions, each too slow alone."""
    minima, sums = w + columns // 4 * 5, x + columns // 8 * 9
    a = b = c = d = splat_f32x8(np.float32(0.0))
    size = columns // 4  # bytes of either
    for at in range(0, size - 127, 128):
        a = fma(load_f32x8(minima + at), load_f32x8(sums + at), a)
        b = fma(load_f32x8(minima + at + 32), load_f32x8(sums + at + 32), b)
        c = fma(load_f32x8(minima + at + 64), load_f32x8(sums + at + 64), c)
        d = fma(load_f32x8(minima + at + 96), load_f32x8(sums + at + 96), d)
    for at in range(size // 128 * 128, size - 31, 32):
        a = fma(load_f32x8(minima + at), load_f32x8(sums + at), a)
    rest = np.float32(0.0)
    for at in range(size // 32 * 32, size, 4):
        rest += load_f32(minima + at) * load_f32(sums + at)
    return reduce_add((a + b) + (c + d)) + rest


@device
def _store_totals(totals, a0, a1, a2, a3):
    store(totals, a0)
    store(totals + 32, a1)
    store(totals + 64, a2)
    store(totals + 96, a3)


@device
def _tile(w0, w1, x0, x1, x2, x3, columns, totals):
    """2 rows x 4 columns of codes; 8 vectors of partial sums."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat_f32x8(np.float32(0.0))
    for block in range(columns // 32):
        at, scale_at, x_scale = 32 * block, columns + 8 * block, columns + 4 * block
        u, v = load_i8x32(w0 + at), load_i8x32(w1 + at)
        s, t = spread_f32x2(load_f32x2(w0 + scale_at)), spread_f32x2(load_f32x2(w1 + scale_at))
        x = load_i8x32(x0 + at)
        a0, b0 = _codes(u, x, s, x0 + x_scale, a0), _codes(v, x, t, x0 + x_scale, b0)
        x = load_i8x32(x1 + at)
        a1, b1 = _codes(u, x, s, x1 + x_scale, a1), _codes(v, x, t, x1 + x_scale, b1)
        x = load_i8x32(x2 + at)
        a2, b2 = _codes(u, x, s, x2 + x_scale, a2), _codes(v, x, t, x2 + x_scale, b2)
        x = load_i8x32(x3 + at)
        a3, b3 = _codes(u, x, s, x3 + x_scale, a3), _codes(v, x, t, x3 + x_scale, b3)
    _store_totals(totals, a0, a1, a2, a3)
    _store_totals(totals + 128, b0, b1, b2, b3)


@device
def _tile_f32(w0, w1, x0, x1, x2, x3, columns, totals):
    """2 rows x 4 columns of f32, whole vectors only; 8 vectors of partial sums."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat_f32x8(np.float32(0.0))
    for at in range(0, (columns & -8) * 4, 32):
        u, v = load_f32x8(w0 + at), load_f32x8(w1 + at)
        x = load_f32x8(x0 + at)
        a0, b0 = fma(u, x, a0), fma(v, x, b0)
        x = load_f32x8(x1 + at)
        a1, b1 = fma(u, x, a1), fma(v, x, b1)
        x = load_f32x8(x2 + at)
        a2, b2 = fma(u, x, a2), fma(v, x, b2)
        x = load_f32x8(x3 + at)
        a3, b3 = fma(u, x, a3), fma(v, x, b3)
    _store_totals(totals, a0, a1, a2, a3)
    _store_totals(totals + 128, b0, b1, b2, b3)


@device
def _finish(total, w, x, columns, flags):
    """A tile's total for one row and column as its float32 result."""
    if flags & FLOAT:
        result = reduce_add(total)
        for i in range(columns & -8, columns):
            result += load_f32(w + 4 * i) * load_f32(x + 4 * i)
        return result
    if flags & MINIMUM:
        return reduce_add(total) - _minima(w, x, columns)
    return reduce_add(total)


@device
def multiply_panel(panel, rows, columns, flags, x_list, y_list, y_offset, tokens):
    """Panel rows times the columns at addresses `x_list`; row r of column t goes to y_list[t] + y_offset + 4r."""
    size, totals = panel_row_bytes(columns, flags), panel
    panel += TOTALS_BYTES
    for token in range(0, tokens, 4):
        last = min(token + 3, tokens - 1)
        x0, x1 = load_i64(x_list + 8 * token), load_i64(x_list + 8 * min(token + 1, last))
        x2, x3 = load_i64(x_list + 8 * min(token + 2, last)), load_i64(x_list + 8 * last)
        for row in range(0, rows, 2):
            w0, w1 = panel + row * size, panel + min(row + 1, rows - 1) * size
            if flags & FLOAT:
                _tile_f32(w0, w1, x0, x1, x2, x3, columns, totals)
            else:
                _tile(w0, w1, x0, x1, x2, x3, columns, totals)
            for i in range(min(2, rows - row)):
                for j in range(last + 1 - token):
                    total = load_f32x8(totals + 128 * i + 32 * j)
                    x = load_i64(x_list + 8 * (token + j))
                    value = _finish(total, panel + (row + i) * size, x, columns, flags)
                    store(load_i64(y_list + 8 * (token + j)) + y_offset + 4 * (row + i), value)
