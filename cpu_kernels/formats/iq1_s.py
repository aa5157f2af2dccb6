"""IQ1_S: 256 values as d f16 | 32 lower bytes of indices | for each 32 values 16 bits: 4 x 3 upper bits, scale, shift.

value = scale x (entry of -1, 0, 1 plus or minus an eighth): codes are 8 x entry plus or minus 1; the top bit for minus.
"""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import load_f16, load_u16, load_u32
from .block256 import dot_signed_rows, unpack_row
from .codebook import codebook, join, odd_scales

VALUES, BYTES = 256, 50
FLOAT = MINIMUM = False

GRID = codebook("IQ1_S", 8)


@device
def codes(block, half, group):
    low, high = load_u32(block + 2 + 16 * half + 4 * group), load_u16(block + 34 + 8 * half + 2 * group)
    entries = join(
        GRID[low & 255 | (high & 7) << 8],
        GRID[low >> 8 & 255 | (high >> 3 & 7) << 8],
        GRID[low >> 16 & 255 | (high >> 6 & 7) << 8],
        GRID[low >> 24 | (high >> 9 & 7) << 8],
    )
    return entries + (1 - (high >> 15) * 2)


@device
def scales(block, half):
    bytes = 0
    for group in range(4):
        bytes |= (load_u16(block + 34 + 8 * half + 2 * group) >> 12 & 7) * 0x0101 << 16 * group
    return odd_scales(bytes, load_f16(block) * np.float32(0.125))


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_signed_rows(codes, scales, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
