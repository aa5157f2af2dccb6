"""Q5_1: 32 values as d f16 | m f16 | the codes' fifth bits, 32 | low nibbles, high nibbles; value = d x code + m."""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import join_i8x16, load_f16, load_i8x16, load_u32, mask_from_bits
from .block32 import dot_rows, unpack_row

VALUES, BYTES = 32, 24
FLOAT, MINIMUM = False, True


@device
def codes(block):
    nibbles = load_i8x16(block + 8)
    return join_i8x16(nibbles & 15, nibbles >> 4) | (mask_from_bits(load_u32(block + 4)) & 16)


@device
def scale_and_minimum(block):
    return load_f16(block), load_f16(block + 2) * np.float32(-1.0)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scale_and_minimum, MINIMUM, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, scale_and_minimum, MINIMUM, BYTES, block, columns, panel)
