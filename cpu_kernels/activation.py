"""Activations as the quantized kernels read them: 8-bit codes with one scale for each 32 values.

A column of K values is K/32 records of 64 bytes, each a cache line: 32 codes int8 in -127..127 | scale f32 | three
sums f32 | three starts int32 | 4 bytes unused. A sum is scale x (the sum of codes), a start -128 x (the sum of codes):
of the first 16, of the last 16, of all 32. Sums are for formats with minima; with a start, shifted right, begins the
dot product of codes that have an offset.
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

CODES, SCALE, SUM_LOW, SUM_HIGH, SUM, START_LOW, START_HIGH, START = 0, 32, 36, 40, 44, 48, 52, 56
RECORD_BYTES = 64
START_BITS = 7


@device
def _half(x, factor, codes):
    """16 values to codes; the sum of the codes."""
    a = i32_from_f32(round_even(load_f32x8(x) * factor))
    b = i32_from_f32(round_even(load_f32x8(x + 32) * factor))
    store(codes, join_i8x8(i8_from_i32(a), i8_from_i32(b)))
    total = a + b
    return reduce_add_i32x4(low_i32x4(total) + high_i32x4(total))


@device
def quantize_block(source, record):
    """32 values; NaN and Inf become the block's scale, so results show them."""
    # The largest |x| by its bit pattern: ordered like the numbers, and NaN is above Inf.
    largest = i32_bits(load_f32x8(source)) & 0x7FFFFFFF
    for i in range(1, 4):
        largest = maximum(largest, i32_bits(load_f32x8(source + 32 * i)) & 0x7FFFFFFF)
    peak = f32_from_bits(reduce_max(largest))
    scale = peak / np.float32(127.0)
    factor = np.float32(0.0) if peak == 0.0 else np.float32(127.0) / peak
    low = _half(source, factor, record + CODES)
    high = _half(source + 64, factor, record + CODES + 16)
    store(record + SCALE, scale)
    store(record + SUM_LOW, scale * np.float32(low))
    store(record + SUM_HIGH, scale * np.float32(high))
    store(record + SUM, scale * np.float32(low + high))
    store(record + START_LOW, np.int32(-low << START_BITS))
    store(record + START_HIGH, np.int32(-high << START_BITS))
    store(record + START, np.int32(-(low + high) << START_BITS))


@device
def quantize_blocks(x, column, first, last):
    """Blocks of 32 from `first` up to `last` of one row."""
    for block in range(first, last):
        quantize_block(x + 128 * block, column + RECORD_BYTES * block)
