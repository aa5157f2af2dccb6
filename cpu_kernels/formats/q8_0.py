"""Q8_0: 32 values as d f16 | 32 codes int8."""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import load_f16, load_i8x32
from .block32 import dot_rows, unpack_row

VALUES, BYTES = 32, 34
FLOAT, MINIMUM = False, False


@device
def codes(block):
    return load_i8x32(block + 2)


@device
def scale_and_minimum(block):
    return load_f16(block), np.float32(0.0)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scale_and_minimum, MINIMUM, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, scale_and_minimum, MINIMUM, BYTES, block, columns, panel)
