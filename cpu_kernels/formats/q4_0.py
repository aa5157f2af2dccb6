"""Q4_0: 32 values as d f16 | low nibbles (codes 0..15), high nibbles (16..31); code - 8."""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import join_i8x16, load_f16, load_i8x16
from .block32 import dot_rows, unpack_row

VALUES, BYTES = 32, 18
FLOAT, MINIMUM = False, False


@device
def codes(block):
    nibbles = load_i8x16(block + 2)
    return join_i8x16(nibbles & 15, nibbles >> 4) - 8


@device
def scale_and_minimum(block):
    return load_f16(block), np.float32(0.0)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scale_and_minimum, MINIMUM, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, scale_and_minimum, MINIMUM, BYTES, block, columns, panel)
