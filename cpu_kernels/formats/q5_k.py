"""Q5_K: as Q4_K with 32 bytes of fifth bits before the nibbles: bit 4h + g of them belongs to group g of half h."""

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import load_i8x32
from .block256 import dot_rows, unpack_minima, unpack_row
from .q4_k import minima, scales

VALUES, BYTES = 256, 176
FLOAT, MINIMUM = False, True


@device
def codes(block, half, group):
    low = load_i8x32(block + 48 + 64 * half + 32 * (group // 2)) >> (4 * (group % 2)) & 15
    fifth = load_i8x32(block + 16) >> (4 * half + group) & 1
    return low | (fifth << 4)


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_rows(codes, scales, minima, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
    unpack_minima(minima, BYTES, block, columns, panel)
