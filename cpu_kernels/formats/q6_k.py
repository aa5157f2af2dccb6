"""Q6_K: 256 values as 128 bytes of low nibbles | 64 bytes of high bit pairs | 16 scales int8 | d f16; code - 32.

Of each half of 128 values: 64 low bytes and 32 high bytes; group g of 32 takes the low (g < 2) or high nibbles of low bytes
32(g % 2) .., and bits 2g, 2g + 1 of the high bytes. A scale serves 16 values.
"""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import (
    dot_unsigned,
    double_high,
    double_low,
    f32_from_i32,
    fma,
    i32_from_i8,
    load_f16,
    load_f32x8,
    load_i8x8,
    load_i8x32,
    reduce_add,
    splat_f32x8,
    spread,
    store,
)

VALUES, BYTES = 256, 210
FLOAT = MINIMUM = False


@device
def codes(block, half, group):
    """32 codes, without the offset of 32."""
    low = load_i8x32(block + 64 * half + 32 * (group % 2)) >> (4 * (group // 2)) & 15
    high = load_i8x32(block + 128 + 32 * half) >> (2 * group) & 3
    return low | (high << 4)


@device
def scales(block, half):
    return f32_from_i32(i32_from_i8(load_i8x8(block + 192 + 8 * half))) * load_f16(block + 208)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    zero = splat_f32x8(np.float32(0.0))
    for row in range(rows):
        block = weights + row * stride
        x_scales, x_sums = x + columns, x + columns // 8 * 9
        even = odd = offset = zero
        for at in range(0, columns, VALUES):
            x_scale = load_f32x8(x_scales)
            for half in range(2):
                scale = scales(block, half)
                offset = fma(scale, load_f32x8(x_sums + 32 * half), offset)
                scale = scale * (double_high(x_scale) if half else double_low(x_scale))
                for group in range(0, 4, 2):
                    x_codes = x + at + 128 * half + 32 * group
                    first = f32_from_i32(dot_unsigned(codes(block, half, group), load_i8x32(x_codes)))
                    second = f32_from_i32(dot_unsigned(codes(block, half, group + 1), load_i8x32(x_codes + 32)))
                    even = fma(first, spread(scale, group), even)
                    odd = fma(second, spread(scale, group + 1), odd)
            block += BYTES
            x_scales += 32
            x_sums += 64
        store(y + 4 * row, reduce_add(even + odd - offset * np.float32(32.0)))


@unpack_kernel
def unpack(block, columns, panel):
    panel_scales = panel + columns
    for at in range(0, columns, 128):
        half = at // 128 % 2
        store(panel_scales, scales(block, half))
        for group in range(4):
            store(panel + at + 32 * group, codes(block, half, group) - 32)
        block += half * BYTES
        panel_scales += 32
