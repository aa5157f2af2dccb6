"""IQ2_XS: 256 values as d f16 | 32 x 16 bits: index of 9, signs of 7 | 16 scales of 4 bits, for 16 values each."""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import load_f16, load_i64, load_u32
from .block256 import dot_signed_rows, unpack_row
from .codebook import EVEN_SIGNS, bytes_of_nibbles, codebook, join, negate, odd_scales

VALUES, BYTES = 256, 74
FLOAT = MINIMUM = False

GRID = codebook("IQ2_XS")


@device
def codes(block, half, group):
    words = load_i64(block + 2 + 32 * half + 8 * group)
    entries = join(GRID[words & 511], GRID[words >> 16 & 511], GRID[words >> 32 & 511], GRID[words >> 48 & 511])
    a, b, c, d = words >> 9 & 127, words >> 25 & 127, words >> 41 & 127, words >> 57 & 127
    return negate(entries, join(EVEN_SIGNS[a], EVEN_SIGNS[b], EVEN_SIGNS[c], EVEN_SIGNS[d]))


@device
def scales(block, half):
    return odd_scales(bytes_of_nibbles(load_u32(block + 66 + 4 * half)), load_f16(block) * np.float32(0.125))


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_signed_rows(codes, scales, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
