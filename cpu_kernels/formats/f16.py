"""F16: IEEE half precision, any row length."""

import numpy as np

from ..jit import dot_kernel, unpack_kernel
from ..simd import fma, load_f16, load_f16x8, load_f32, load_f32x8, reduce_add, splat_f32x8, store

VALUES, BYTES = 1, 2
FLOAT, MINIMUM = True, False


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    zero = splat_f32x8(np.float32(0.0))
    for row in range(rows):
        w = weights + row * stride
        even = odd = zero
        for i in range(0, columns - 15, 16):
            even = fma(load_f16x8(w + 2 * i), load_f32x8(x + 4 * i), even)
            odd = fma(load_f16x8(w + 2 * (i + 8)), load_f32x8(x + 4 * (i + 8)), odd)
        total = reduce_add(even + odd)
        for i in range(columns // 16 * 16, columns):
            total += load_f16(w + 2 * i) * load_f32(x + 4 * i)
        store(y + 4 * row, total)


@unpack_kernel
def unpack(row, columns, panel):
    for i in range(0, columns - 7, 8):
        store(panel + 4 * i, load_f16x8(row + 2 * i))
    for i in range(columns // 8 * 8, columns):
        store(panel + 4 * i, load_f16(row + 2 * i))
