"""Q2_K: 256 values as 16 bytes of scale (low nibble) and minimum (high) | 64 bytes of 2-bit codes | d f16 | dmin f16.

Code bytes 32h .. of half h hold group g in bits 2g, 2g + 1. A scale serves 16 values.
"""

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import f32_from_i32, i32_from_u8, load_f16, load_i8x8, load_i8x32
from .block256 import dot_rows, unpack_minima, unpack_row

VALUES, BYTES = 256, 84
FLOAT, MINIMUM = False, True


@device
def codes(block, half, group):
    return load_i8x32(block + 16 + 32 * half) >> (2 * group) & 3


@device
def scales(block, half):
    return f32_from_i32(i32_from_u8(load_i8x8(block + 8 * half) & 15)) * load_f16(block + 80)


@device
def minima(block, half):
    return f32_from_i32(i32_from_u8(load_i8x8(block + 8 * half) >> 4)) * load_f16(block + 82)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scales, minima, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
    unpack_minima(minima, BYTES, block, columns, panel)
