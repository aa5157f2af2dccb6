"""The two kernels of formats with blocks of 32 values and one scale: the format brings `codes` and `scale_and_minimum`.

value = scale x code - minimum. `codes(block)` are 32 signed bytes in the values' order; `minimum_used`: a constant.
"""

import numpy as np

from ..dot import dot_signed
from ..jit import device
from ..simd import f32_from_i32, fma, load_f32, load_i8x32, reduce_add, splat_f32x8, store


@device
def _step(codes, scale_and_minimum, minimum_used, block, x, scales, sums, total, lost):
    """One block: the new total of products and of minimum x sum."""
    scale, minimum = scale_and_minimum(block)
    products = f32_from_i32(dot_signed(codes(block), load_i8x32(x)))
    if minimum_used:
        lost += minimum * (load_f32(sums) + load_f32(sums + 4))
    return fma(products, scale * load_f32(scales), total), lost


@device
def dot_rows(codes, scale_and_minimum, minimum_used, block_bytes, weights, stride, rows, columns, x, y):
    """Even and odd blocks add up apart: two chains of dependent additions instead of one."""
    for row in range(rows):
        block, scales, sums = weights + row * stride, x + columns, x + columns // 8 * 9
        even = odd = splat_f32x8(np.float32(0.0))
        lost = np.float32(0.0)
        for at in range(0, columns - 32, 64):
            even, lost = _step(codes, scale_and_minimum, minimum_used, block, x + at, scales, sums, even, lost)
            odd, lost = _step(
                codes,
                scale_and_minimum,
                minimum_used,
                block + block_bytes,
                x + at + 32,
                scales + 4,
                sums + 8,
                odd,
                lost,
            )
            block += 2 * block_bytes
            scales += 8
            sums += 16
        if columns % 64:
            even, lost = _step(
                codes, scale_and_minimum, minimum_used, block, x + columns - 32, scales, sums, even, lost
            )
        store(y + 4 * row, reduce_add(even + odd) - lost)


@device
def unpack_row(codes, scale_and_minimum, minimum_used, block_bytes, block, columns, panel):
    scales, minima = panel + columns, panel + columns // 4 * 5
    for at in range(0, columns, 32):
        store(panel + at, codes(block))
        scale, minimum = scale_and_minimum(block)
        for half in range(0, 8, 4):
            store(scales + at // 4 + half, scale)
            if minimum_used:
                store(minima + at // 4 + half, minimum)
        block += block_bytes
