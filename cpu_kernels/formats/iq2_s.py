"""IQ2_S: 256 values as d f16 | 32 lower bytes of indices | 32 bytes of signs | their upper bit pairs, 8 bytes | scales.

16 scales of 4 bits, for 16 values each.
"""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import load_f16, load_u16, load_u32
from .block256 import dot_signed_rows, unpack_row
from .codebook import SIGNS, bytes_of_nibbles, codebook, join, negate, odd_scales

VALUES, BYTES = 256, 82
FLOAT = MINIMUM = False

GRID = codebook("IQ2_S")


@device
def codes(block, half, group):
    at = 4 * half + group
    low, high, signs = load_u32(block + 2 + 4 * at), load_u16(block + 65 + at) >> 8, load_u32(block + 34 + 4 * at)
    entries = join(
        GRID[low & 255 | (high & 3) << 8],
        GRID[low >> 8 & 255 | (high >> 2 & 3) << 8],
        GRID[low >> 16 & 255 | (high >> 4 & 3) << 8],
        GRID[low >> 24 | (high >> 6) << 8],
    )
    masks = join(SIGNS[signs & 255], SIGNS[signs >> 8 & 255], SIGNS[signs >> 16 & 255], SIGNS[signs >> 24])
    return negate(entries, masks)


@device
def scales(block, half):
    return odd_scales(bytes_of_nibbles(load_u32(block + 74 + 4 * half)), load_f16(block) * np.float32(0.125))


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_signed_rows(codes, scales, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
