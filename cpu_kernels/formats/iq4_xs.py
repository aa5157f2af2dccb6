"""IQ4_XS: 256 values as d f16 | upper scale bit pairs, 16 bits | 8 lower scale nibbles | 8 x 16 bytes of nibbles.

Each group of 32 is coded as in IQ4_NL, with its own scale of 6 bits; scale - 32.
"""

from ..dot import lookup
from ..jit import device, dot_kernel, unpack_kernel
from ..simd import (
    double_high,
    double_low,
    f32_from_i32,
    i8x8_from_i64,
    i32_from_i8,
    join_i8x16,
    load_f16,
    load_i8x16,
    load_u16,
    load_u32,
)
from .block256 import dot_signed_rows, unpack_row
from .iq4_nl import TABLE

VALUES, BYTES = 256, 136
FLOAT = MINIMUM = False


@device
def codes(block, half, group):
    nibbles = load_i8x16(block + 8 + 64 * half + 16 * group)
    return lookup(TABLE(), join_i8x16(nibbles & 15, nibbles >> 4))


@device
def scales(block, half):
    # Nibble i and bit pair i move to byte i, halving the distance at each step.
    low = load_u32(block + 4)
    low = (low | low << 16) & 0x0000FFFF0000FFFF
    low = (low | low << 8) & 0x00FF00FF00FF00FF
    low = (low | low << 4) & 0x0F0F0F0F0F0F0F0F
    high = load_u16(block + 2)
    high = (high | high << 24) & 0x000000FF000000FF
    high = (high | high << 12) & 0x000F000F000F000F
    high = (high | high << 6) & 0x0303030303030303
    values = f32_from_i32(i32_from_i8(i8x8_from_i64(low | (high << 4)) - 32)) * load_f16(block)
    return double_high(values) if half else double_low(values)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_signed_rows(codes, scales, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
