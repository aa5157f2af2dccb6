"""IQ4_NL: 32 values as d f16 | low nibbles (indices 0..15), high nibbles (16..31) into a table of 16 uneven steps."""

import numpy as np

from ..dot import lookup
from ..jit import device, dot_kernel, unpack_kernel
from ..simd import join_i8x16, load_f16, load_i8x16
from ..vector import I8x32, constant
from .block32 import dot_rows, unpack_row

VALUES, BYTES = 32, 18
FLOAT, MINIMUM = False, False

STEPS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
TABLE = constant(I8x32, STEPS + STEPS)


@device
def codes(block):
    nibbles = load_i8x16(block + 2)
    return lookup(TABLE(), join_i8x16(nibbles & 15, nibbles >> 4))


@device
def scale_and_minimum(block):
    return load_f16(block), np.float32(0.0)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scale_and_minimum, MINIMUM, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, scale_and_minimum, MINIMUM, BYTES, block, columns, panel)
