"""Tiles: a few unpacked weight rows times many columns, the same for every format.

A panel row of K values is K codes int8 | K/16 scales f32 | K/16 minima f32 for quantized formats, K f32 for the others.
The register tile is 2 rows x 4 columns; rows and columns past the end repeat the last one and write the same result twice.
"""

import numpy as np

from .atomic import load_i64
from .jit import device
from .simd import (
    dot_signed,
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


@device
def panel_row_bytes(columns, flags):
    return 4 * columns if flags & FLOAT else columns // 2 * 3


@device
def _codes(w, x, scale, x_scale, total):
    """One block of 32: total += scale x x_scale x (codes . codes)."""
    return fma(f32_from_i32(dot_signed(w, x)), scale * load_f32(x_scale), total)


@device
def _minima(w, x, columns, total):
    """total - the sum over groups of 16 of minimum x sum."""
    minima, sums = w + columns // 4 * 5, x + columns // 8 * 9
    lost = splat_f32x8(np.float32(0.0))
    groups = columns // 16
    for i in range(0, groups - 7, 8):
        lost = fma(load_f32x8(minima + 4 * i), load_f32x8(sums + 4 * i), lost)
    rest = np.float32(0.0)
    for i in range(groups // 8 * 8, groups):
        rest += load_f32(minima + 4 * i) * load_f32(sums + 4 * i)
    return reduce_add(total) - (reduce_add(lost) + rest)


@device
def _tile(w0, w1, x0, x1, x2, x3, columns):
    """2 rows x 4 columns of codes; the 8 totals."""
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
    return a0, a1, a2, a3, b0, b1, b2, b3


@device
def _tile_f32(w0, w1, x0, x1, x2, x3, columns):
    """2 rows x 4 columns of f32; whole vectors only."""
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
    return a0, a1, a2, a3, b0, b1, b2, b3


@device
def _finish(total, w, x, columns, flags):
    """A tile's total for one row and column as its float32 result."""
    if flags & FLOAT:
        result = reduce_add(total)
        for i in range(columns & -8, columns):
            result += load_f32(w + 4 * i) * load_f32(x + 4 * i)
        return result
    if flags & MINIMUM:
        return _minima(w, x, columns, total)
    return reduce_add(total)


@device
def multiply_panel(panel, rows, columns, flags, x_list, y_list, y_offset, tokens):
    """Panel rows times the columns whose addresses `x_list` holds; row r of column t goes to y_list[t] + y_offset + 4r."""
    size = panel_row_bytes(columns, flags)
    for token in range(0, tokens, 4):
        at0, at1 = 8 * token, 8 * min(token + 1, tokens - 1)
        at2, at3 = 8 * min(token + 2, tokens - 1), 8 * min(token + 3, tokens - 1)
        x0, x1, x2, x3 = load_i64(x_list + at0), load_i64(x_list + at1), load_i64(x_list + at2), load_i64(x_list + at3)
        for row in range(0, rows, 2):
            w0, w1 = panel + row * size, panel + min(row + 1, rows - 1) * size
            if flags & FLOAT:
                a0, a1, a2, a3, b0, b1, b2, b3 = _tile_f32(w0, w1, x0, x1, x2, x3, columns)
            else:
                a0, a1, a2, a3, b0, b1, b2, b3 = _tile(w0, w1, x0, x1, x2, x3, columns)
            y = y_offset + 4 * row
            store(load_i64(y_list + at0) + y, _finish(a0, w0, x0, columns, flags))
            store(load_i64(y_list + at1) + y, _finish(a1, w0, x1, columns, flags))
            store(load_i64(y_list + at2) + y, _finish(a2, w0, x2, columns, flags))
            store(load_i64(y_list + at3) + y, _finish(a3, w0, x3, columns, flags))
            if row + 1 < rows:
                y += 4
                store(load_i64(y_list + at0) + y, _finish(b0, w1, x0, columns, flags))
                store(load_i64(y_list + at1) + y, _finish(b1, w1, x1, columns, flags))
                store(load_i64(y_list + at2) + y, _finish(b2, w1, x2, columns, flags))
                store(load_i64(y_list + at3) + y, _finish(b3, w1, x3, columns, flags))
