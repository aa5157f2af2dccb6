"""IQ2_XXS: 256 values as d f16 | 8 groups of 4 indices of 8 bits and, in 32 bits, 4 x 7 signs and a scale of 4 bits."""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import load_f16, load_u32
from .block256 import dot_signed_rows, unpack_row
from .codebook import EVEN_SIGNS, codebook, join, negate, odd_scales

VALUES, BYTES = 256, 66
FLOAT = MINIMUM = False

GRID = codebook("IQ2_XXS")


@device
def codes(block, half, group):
    indices, signs = load_u32(block + 2 + 32 * half + 8 * group), load_u32(block + 6 + 32 * half + 8 * group)
    entries = join(GRID[indices & 255], GRID[indices >> 8 & 255], GRID[indices >> 16 & 255], GRID[indices >> 24])
    masks = join(
        EVEN_SIGNS[signs & 127],
        EVEN_SIGNS[signs >> 7 & 127],
        EVEN_SIGNS[signs >> 14 & 127],
        EVEN_SIGNS[signs >> 21 & 127],
    )
    return negate(entries, masks)


@device
def scales(block, half):
    bytes = 0
    for group in range(4):
        bytes |= (load_u32(block + 6 + 32 * half + 8 * group) >> 28) * 0x0101 << 16 * group
    return odd_scales(bytes, load_f16(block) * np.float32(0.125))


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_signed_rows(codes, scales, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
