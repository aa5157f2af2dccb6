"""Q4_K: 256 values as d f16 | dmin f16 | 8 scales and 8 minima of 6 bits in 12 bytes | 128 bytes of nibbles.

Nibble bytes 32p .. hold groups 2p (low) and 2p + 1 (high) of 32 values. value = (d x scale) x code - dmin x minimum.
"""

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import double_high, double_low, f32_from_i32, i8x8_from_i64, i32_from_u8, load_f16, load_i8x32, load_u32
from .block256 import dot_rows, unpack_minima, unpack_row

VALUES, BYTES = 256, 144
FLOAT, MINIMUM = False, True


@device
def codes(block, half, group):
    return load_i8x32(block + 16 + 64 * half + 32 * (group // 2)) >> (4 * (group % 2)) & 15


@device
def scales(block, half):
    low, high = load_u32(block + 4), load_u32(block + 12)
    bits = (low & 0x3F3F3F3F) | (((high & 0x0F0F0F0F) | (low >> 2 & 0x30303030)) << 32)
    values = f32_from_i32(i32_from_u8(i8x8_from_i64(bits))) * load_f16(block)
    return double_high(values) if half else double_low(values)


@device
def minima(block, half):
    low, high = load_u32(block + 8), load_u32(block + 12)
    bits = (low & 0x3F3F3F3F) | (((high >> 4 & 0x0F0F0F0F) | (low >> 2 & 0x30303030)) << 32)
    values = f32_from_i32(i32_from_u8(i8x8_from_i64(bits))) * load_f16(block + 2)
    return double_high(values) if half else double_low(values)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scales, minima, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
    unpack_minima(minima, BYTES, block, columns, panel)
