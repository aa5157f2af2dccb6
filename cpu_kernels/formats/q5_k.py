"""Q5_K: as Q4_K with 32 bytes of fifth bits before the nibbles: bit b of them belongs to group b of 32 values."""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import multiplier
from .q4_k import Q4_K


class Q5_K(Q4_K):
    BYTES, BITS = 176, 5
    NIBBLES = 12
    ORDER = (*range(4), *(w for i in range(8) for w in (4 + i, 12 + i)), *range(20, 44))

    def codes(self, block, word):
        return super().codes(block, word) | (self.word_bytes(4 + word).slide(block - 4) & 0x10)


FORMAT = Q5_K


_multiply, _dequantize = multiplier(Q5_K), dequantizer(Q5_K)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
