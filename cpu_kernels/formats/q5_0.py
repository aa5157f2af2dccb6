"""Q5_0: 32 values as d f16 | the codes' fifth bits, 32 | low nibbles (codes 0..15), high nibbles (16..31); code - 16."""

import numpy as np

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import (
    dot_signed,
    f32_from_i32,
    fma,
    join_i8x16,
    load_f16,
    load_f32,
    load_i8x16,
    load_i8x32,
    load_u32,
    mask_from_bits,
    reduce_add,
    splat_f32x8,
    store,
)

VALUES, BYTES = 32, 22
FLOAT = MINIMUM = False


@device
def codes(block):
    nibbles = load_i8x16(block + 6)
    low = join_i8x16(nibbles & 15, nibbles >> 4)
    # A set fifth bit adds 16 and the offset takes 16: only codes without it change, by -16 = 0xF0.
    return low | ((mask_from_bits(load_u32(block + 2)) ^ -1) & 0xF0)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    for row in range(rows):
        block, scales = weights + row * stride, x + columns
        total = splat_f32x8(np.float32(0.0))
        for at in range(0, columns, 32):
            products = f32_from_i32(dot_signed(codes(block), load_i8x32(x + at)))
            total = fma(products, load_f16(block) * load_f32(scales), total)
            block += BYTES
            scales += 4
        store(y + 4 * row, reduce_add(total))


@unpack_kernel
def unpack(block, columns, panel):
    scales = panel + columns
    for at in range(0, columns, 32):
        store(panel + at, codes(block))
        scale = load_f16(block)
        store(scales, scale)
        store(scales + 4, scale)
        block += BYTES
        scales += 8
