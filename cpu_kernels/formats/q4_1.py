"""Q4_1: 32 values as d f16 | m f16 | low nibbles (codes 0..15), high nibbles (16..31); value = d x code + m."""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import join_i8x16, load_f16, load_i8x16
from .block32 import dot_rows, unpack_row

VALUES, BYTES = 32, 20
FLOAT, MINIMUM = False, True


@device
def codes(block):
    nibbles = load_i8x16(block + 4)
    return join_i8x16(nibbles & 15, nibbles >> 4)


@device
def scale_and_minimum(block):
    return load_f16(block), load_f16(block + 2) * np.float32(-1.0)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scale_and_minimum, MINIMUM, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, scale_and_minimum, MINIMUM, BYTES, block, columns, panel)
