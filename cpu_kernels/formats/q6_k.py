"""Q6_K: 256 values as 128 bytes of low nibbles | 64 bytes of high bit pairs | 16 scales int8 | d f16; code - 32.

Half h has 64 low bytes and 32 high bytes. Group g takes the low (g < 2) or high nibbles of low bytes 32(g % 2) ..,
and bits 2g, 2g + 1 of the high bytes. A scale serves 16 values.
"""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import f32_from_i32, i32_from_i8, load_f16, load_i8x8, load_i8x32
from .block256 import dot_rows, unpack_row

VALUES, BYTES = 256, 210
FLOAT = MINIMUM = False


@device
def codes(block, half, group):
    """Without the offset of 32."""
    low = load_i8x32(block + 64 * half + 32 * (group % 2)) >> (4 * (group // 2)) & 15
    high = load_i8x32(block + 128 + 32 * half) >> (2 * group) & 3
    return low | (high << 4)


@device
def scales(block, half):
    return f32_from_i32(i32_from_i8(load_i8x8(block + 192 + 8 * half))) * load_f16(block + 208)


@device
def minima(block, half):
    return scales(block, half) * np.float32(32.0)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scales, minima, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 32, scales, BYTES, block, columns, panel)
