"""Q3_K: 256 values as 32 bytes of third bits | 64 of 2-bit codes | 16 scales of 6 bits in 12 bytes | d f16; code - 4.

Code bytes 32h .. of half h hold group g in bits 2g, 2g + 1; its third bits are bit 4h + g of the first 32 bytes.
Scales: low nibbles (0..7) and high nibbles (8..15) of 8 bytes, then the upper bit pairs in 4 bytes; scale - 32; for 16
values each.
"""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import f32_from_i32, i8x8_from_i64, i32_from_i8, load_f16, load_i8x32, load_i64, load_u32
from .block256 import dot_rows, unpack_row

VALUES, BYTES = 256, 110
FLOAT = MINIMUM = False


@device
def codes(block, half, group):
    """Without the offset of 4."""
    low = load_i8x32(block + 32 + 32 * half) >> (2 * group) & 3
    third = load_i8x32(block) >> (4 * half + group) & 1
    return low | (third << 2)


@device
def scales(block, half):
    low = load_i64(block + 96) >> (4 * half) & 0x0F0F0F0F0F0F0F0F
    pairs = load_u32(block + 104) >> (4 * half)
    high = (pairs & 0x03030303) | ((pairs >> 2 & 0x03030303) << 32)
    return f32_from_i32(i32_from_i8(i8x8_from_i64(low | (high << 4)) - 32)) * load_f16(block + 108)


@device
def minima(block, half):
    return scales(block, half) * np.float32(4.0)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scales, minima, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 4, scales, BYTES, block, columns, panel)
