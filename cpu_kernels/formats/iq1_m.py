"""IQ1_M: 256 values as 32 lower bytes of indices | for each 8 values a nibble: 3 upper bits, shift | scales, 8 bytes.

Each 16 bits of the last hold four scales of 3 bits, for 16 values each, and a quarter of d f16, the lowest first.
Codebook and shift are those of IQ1_S.
"""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import load_u16, load_u32
from .block256 import dot_signed_rows, unpack_row
from .codebook import codebook, f16_from_bits, join, odd_scales

VALUES, BYTES = 256, 56
FLOAT = MINIMUM = False

GRID = codebook("IQ1_M", 8)


@device
def _shift(nibble):
    """8 times 1 or -1."""
    return 0x0101010101010101 if nibble & 8 == 0 else -1


@device
def codes(block, half, group):
    low, high = load_u32(block + 16 * half + 4 * group), load_u16(block + 32 + 8 * half + 2 * group)
    entries = join(
        GRID[low & 255 | (high & 7) << 8],
        GRID[low >> 8 & 255 | (high >> 4 & 7) << 8],
        GRID[low >> 16 & 255 | (high >> 8 & 7) << 8],
        GRID[low >> 24 | (high >> 12 & 7) << 8],
    )
    return entries + join(_shift(high), _shift(high >> 4), _shift(high >> 8), _shift(high >> 12))


@device
def scales(block, half):
    d = 0
    for quarter in range(4):
        d |= load_u16(block + 48 + 2 * quarter) >> 12 << 4 * quarter
    words = load_u32(block + 48 + 4 * half)
    bytes = 0
    for i in range(4):
        bytes |= (words >> 3 * i & 7) << 8 * i | (words >> 16 >> 3 * i & 7) << 32 + 8 * i
    return odd_scales(bytes, f16_from_bits(d) * np.float32(0.125))


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_signed_rows(codes, scales, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
