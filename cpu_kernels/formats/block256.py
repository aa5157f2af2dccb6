"""The two kernels of formats with blocks of 256 values and a scale for each 16 or 32.

The format brings, for half h (128 values) and group g (32 values) of a block:
codes(block, h, g)      32 bytes in the values' order, 0..127 for `dot_rows`, signed for `dot_signed_rows`
scales(block, h)        f32x8, one for each 16 values (twice the same where a scale serves 32)
minima(block, h)        likewise; value = scale x code - minimum
"""

import numpy as np

from ..dot import dot_signed, dot_unsigned
from ..jit import device
from ..simd import (
    double_high,
    double_low,
    f32_from_i32,
    fma,
    load_f32x8,
    load_i8x32,
    reduce_add,
    splat_f32x8,
    spread,
    store,
)

VALUES = 256


@device
def dot_rows(codes, scales, minima, block_bytes, weights, stride, rows, columns, x, y):
    """Formats whose codes are unsigned: an offset of the codes is part of the minimum."""
    zero = splat_f32x8(np.float32(0.0))
    for row in range(rows):
        block = weights + row * stride
        x_scales, x_sums = x + columns, x + columns // 8 * 9
        even = odd = lost = zero
        for at in range(0, columns, VALUES):
            x_scale = load_f32x8(x_scales)
            for half in range(2):
                lost = fma(minima(block, half), load_f32x8(x_sums + 32 * half), lost)
                scale = scales(block, half) * (double_high(x_scale) if half else double_low(x_scale))
                for group in range(0, 4, 2):
                    x_codes = x + at + 128 * half + 32 * group
                    first = f32_from_i32(dot_unsigned(codes(block, half, group), load_i8x32(x_codes)))
                    second = f32_from_i32(dot_unsigned(codes(block, half, group + 1), load_i8x32(x_codes + 32)))
                    even = fma(first, spread(scale, group), even)
                    odd = fma(second, spread(scale, group + 1), odd)
            block += block_bytes
            x_scales += 32
            x_sums += 64
        store(y + 4 * row, reduce_add(even + odd - lost))


@device
def dot_signed_rows(codes, scales, block_bytes, weights, stride, rows, columns, x, y):
    """Formats whose codes need all of a signed byte, without minima."""
    for row in range(rows):
        block, x_scales = weights + row * stride, x + columns
        even = odd = splat_f32x8(np.float32(0.0))
        for at in range(0, columns, VALUES):
            x_scale = load_f32x8(x_scales)
            for half in range(2):
                scale = scales(block, half) * (double_high(x_scale) if half else double_low(x_scale))
                for group in range(0, 4, 2):
                    x_codes = x + at + 128 * half + 32 * group
                    first = f32_from_i32(dot_signed(codes(block, half, group), load_i8x32(x_codes)))
                    second = f32_from_i32(dot_signed(codes(block, half, group + 1), load_i8x32(x_codes + 32)))
                    even = fma(first, spread(scale, group), even)
                    odd = fma(second, spread(scale, group + 1), odd)
            block += block_bytes
            x_scales += 32
        store(y + 4 * row, reduce_add(even + odd))


@device
def unpack_row(codes, offset, scales, block_bytes, block, columns, panel):
    """Codes less `offset`, and scales."""
    for at in range(0, columns, VALUES):
        for half in range(2):
            target = at + 128 * half
            store(panel + columns + target // 4, scales(block, half))
            for group in range(4):
                store(panel + target + 32 * group, codes(block, half, group) - offset)
        block += block_bytes


@device
def unpack_minima(minima, block_bytes, block, columns, panel):
    for at in range(0, columns, VALUES):
        for half in range(2):
            store(panel + columns // 4 * 5 + (at + 128 * half) // 4, minima(block, half))
        block += block_bytes
