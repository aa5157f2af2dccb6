"""IQ3_XXS: 256 values as d f16 | 64 indices of 4 values | for each 32 values 32 bits: 4 x 7 signs, scale of 4 bits."""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import load_f16, load_i64, load_u32
from .block256 import dot_signed_rows, unpack_row
from .codebook import EVEN_SIGNS, codebook, join, negate, odd_scales, pair

VALUES, BYTES = 256, 98
FLOAT = MINIMUM = False

GRID = codebook("IQ3_XXS")


@device
def _entry(indices):
    """8 codes of the lowest two indices."""
    return pair(GRID[indices & 255], GRID[indices >> 8 & 255])


@device
def codes(block, half, group):
    indices, signs = load_i64(block + 2 + 32 * half + 8 * group), load_u32(block + 66 + 16 * half + 4 * group)
    entries = join(_entry(indices), _entry(indices >> 16), _entry(indices >> 32), _entry(indices >> 48))
    a, b, c, d = signs & 127, signs >> 7 & 127, signs >> 14 & 127, signs >> 21 & 127
    return negate(entries, join(EVEN_SIGNS[a], EVEN_SIGNS[b], EVEN_SIGNS[c], EVEN_SIGNS[d]))


@device
def scales(block, half):
    bytes = 0
    for group in range(4):
        bytes |= (load_u32(block + 66 + 16 * half + 4 * group) >> 28) * 0x0101 << 16 * group
    return odd_scales(bytes, load_f16(block) * np.float32(0.25))


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_signed_rows(codes, scales, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
