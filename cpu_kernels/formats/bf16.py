"""BF16: the upper half of an f32, any row length."""

import numpy as np

from ..jit import dot_kernel, unpack_kernel
from ..simd import fma, load_bf16, load_bf16x8, load_f32, load_f32x8, reduce_add, splat_f32x8, store

VALUES, BYTES = 1, 2
FLOAT, MINIMUM = True, False


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    zero = splat_f32x8(np.float32(0.0))
    for row in range(rows):
        w = weights + row * stride
        even = odd = zero
        for at in range(0, (columns & -16) * 4, 64):
            even = fma(load_bf16x8(w + at // 2), load_f32x8(x + at), even)
            odd = fma(load_bf16x8(w + at // 2 + 16), load_f32x8(x + at + 32), odd)
        total = reduce_add(even + odd)
        for at in range((columns & -16) * 4, columns * 4, 4):
            total += load_bf16(w + at // 2) * load_f32(x + at)
        store(y + 4 * row, total)


@unpack_kernel
def unpack(row, columns, panel):
    for at in range(0, columns * 4, 4):
        store(panel + at, load_bf16(row + at // 2))
