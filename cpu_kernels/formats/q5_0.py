"""Q5_0: 32 values as d f16 | the codes' fifth bits, 32 | low nibbles (0..15), high nibbles (16..31); code - 16."""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import join_i8x16, load_f16, load_i8x16, load_u32, mask_from_bits
from .block32 import dot_rows, unpack_row

VALUES, BYTES = 32, 22
FLOAT, MINIMUM = False, False


@device
def codes(block):
    nibbles = load_i8x16(block + 6)
    # With its fifth bit a code stays as it is (+16 - 16), without it loses 16: the upper bits become 0xF.
    below = mask_from_bits(load_u32(block + 2)) ^ -1
    return join_i8x16(nibbles & 15, nibbles >> 4) | (below & 0xF0)


@device
def scale_and_minimum(block):
    return load_f16(block), np.float32(0.0)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scale_and_minimum, MINIMUM, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, scale_and_minimum, MINIMUM, BYTES, block, columns, panel)
