"""Q8_0: 32 values as d f16 | 32 codes int8."""

import numpy as np

from ..jit import dot_kernel, unpack_kernel
from ..simd import dot_signed, f32_from_i32, fma, load_f16, load_f32, load_i8x32, reduce_add, splat_f32x8, store

VALUES, BYTES = 32, 34
FLOAT = MINIMUM = False


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    for row in range(rows):
        block, scales = weights + row * stride, x + columns
        total = splat_f32x8(np.float32(0.0))
        for at in range(0, columns, 32):
            products = f32_from_i32(dot_signed(load_i8x32(block + 2), load_i8x32(x + at)))
            total = fma(products, load_f16(block) * load_f32(scales), total)
            block += BYTES
            scales += 4
        store(y + 4 * row, reduce_add(total))


@unpack_kernel
def unpack(block, columns, panel):
    scales = panel + columns
    for at in range(0, columns, 32):
        store(panel + at, load_i8x32(block + 2))
        scale = load_f16(block)
        store(scales, scale)
        store(scales + 4, scale)
        block += BYTES
        scales += 8
