"""Activations as the quantized kernels read them: 8-bit codes with one scale for each 32 values.

One column of K values: K codes int8 in -127..127 | K/32 scales f32 | K/16 sums f32; 11K/8 bytes.
A sum is scale x (the sum of 16 codes), for the formats that have minima.
"""

import numpy as np

from .jit import device
from .simd import (
    f32_from_bits,
    high_i32x4,
    i8_from_i32,
    i32_bits,
    i32_from_f32,
    join_i8x8,
    load_f32x8,
    low_i32x4,
    maximum,
    reduce_add_i32x4,
    reduce_max,
    round_even,
    store,
)


@device
def _half(x, factor, codes):
    """16 values to codes; the sum of the codes."""
    a = i32_from_f32(round_even(load_f32x8(x) * factor))
    b = i32_from_f32(round_even(load_f32x8(x + 32) * factor))
    store(codes, join_i8x8(i8_from_i32(a), i8_from_i32(b)))
    total = a + b
    return reduce_add_i32x4(low_i32x4(total) + high_i32x4(total))


@device
def quantize_blocks(x, column, columns, first, last):
    """Blocks of 32 from `first` up to `last` of one row; NaN and Inf become the block's scale, so results show them."""
    scales, sums = column + columns, column + columns + columns // 8
    for block in range(first, last):
        source = x + 128 * block
        # The largest |x| by its bit pattern: ordered like the numbers, and NaN is above Inf.
        largest = i32_bits(load_f32x8(source)) & 0x7FFFFFFF
        for i in range(1, 4):
            largest = maximum(largest, i32_bits(load_f32x8(source + 32 * i)) & 0x7FFFFFFF)
        peak = f32_from_bits(reduce_max(largest))
        scale = peak / np.float32(127.0)
        factor = np.float32(0.0) if peak == 0.0 else np.float32(127.0) / peak
        low = _half(source, factor, column + 32 * block)
        high = _half(source + 64, factor, column + 32 * block + 16)
        store(scales + 4 * block, scale)
        store(sums + 8 * block, scale * np.float32(low))
        store(sums + 8 * block + 4, scale * np.float32(high))
