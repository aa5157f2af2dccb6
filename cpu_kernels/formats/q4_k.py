"""Q4_K: 256 values as d f16 | dmin f16 | 8 scales and 8 minima of 6 bits in 12 bytes | 4 x 32 bytes of nibbles.

Nibble byte i of group pair j holds codes 64j + i (low) and 64j + 32 + i (high). value = (d x scale) x code - dmin x minimum.
"""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import (
    dot_unsigned,
    double_high,
    double_low,
    f32_from_i32,
    fma,
    i8x8_from_i64,
    i32_from_u8,
    lane,
    load_f16,
    load_f32x8,
    load_i8x32,
    load_u32,
    reduce_add,
    splat_f32x8,
    store,
)

VALUES, BYTES = 256, 144
FLOAT, MINIMUM = False, True


@device
def scales_and_minima(block):
    """Of the 8 groups of 32: d x scale and dmin x minimum. Q5_K has the same head."""
    a, b, c = load_u32(block + 4), load_u32(block + 8), load_u32(block + 12)
    low = a & 0x3F3F3F3F
    high = (c & 0x0F0F0F0F) | ((a >> 2) & 0x30303030)
    scales = f32_from_i32(i32_from_u8(i8x8_from_i64(low | (high << 32)))) * load_f16(block)
    low = b & 0x3F3F3F3F
    high = ((c >> 4) & 0x0F0F0F0F) | ((b >> 2) & 0x30303030)
    minima = f32_from_i32(i32_from_u8(i8x8_from_i64(low | (high << 32)))) * load_f16(block + 2)
    return scales, minima


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    zero = splat_f32x8(np.float32(0.0))
    for row in range(rows):
        block = weights + row * stride
        x_scales, x_sums = x + columns, x + columns // 8 * 9
        even = odd = lost = zero
        for at in range(0, columns, VALUES):
            scales, minima = scales_and_minima(block)
            lost = fma(double_low(minima), load_f32x8(x_sums), lost)
            lost = fma(double_high(minima), load_f32x8(x_sums + 32), lost)
            scales = scales * load_f32x8(x_scales)
            for pair in range(4):
                nibbles = load_i8x32(block + 16 + 32 * pair)
                codes = x + at + 64 * pair
                low = f32_from_i32(dot_unsigned(nibbles & 15, load_i8x32(codes)))
                high = f32_from_i32(dot_unsigned(nibbles >> 4, load_i8x32(codes + 32)))
                even, odd = fma(low, lane(scales, 2 * pair), even), fma(high, lane(scales, 2 * pair + 1), odd)
            block += BYTES
            x_scales += 32
            x_sums += 64
        store(y + 4 * row, reduce_add(even + odd - lost))


@unpack_kernel
def unpack(block, columns, panel):
    panel_scales, panel_minima = panel + columns, panel + columns // 4 * 5
    for at in range(0, columns, VALUES):
        scales, minima = scales_and_minima(block)
        store(panel_scales, double_low(scales))
        store(panel_scales + 32, double_high(scales))
        store(panel_minima, double_low(minima))
        store(panel_minima + 32, double_high(minima))
        for pair in range(4):
            nibbles = load_i8x32(block + 16 + 32 * pair)
            store(panel + at + 64 * pair, nibbles & 15)
            store(panel + at + 64 * pair + 32, nibbles >> 4)
        block += BYTES
        panel_scales += 64
        panel_minima += 64
