"""Q4_1: 32 values as d f16 | m f16 | low nibbles (codes 0..15), high nibbles (16..31); value = d x code + m."""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..lanes import I16
from ..tile import Format, multiplier


class Q4_1(Format):
    VALUES, BYTES, BITS = 32, 20, 4

    def codes(self, block, word):
        nibbles = self.word_bytes(1 + word % 4)
        return nibbles.slide(4 * (word // 4)) & 0x0F

    def scales(self, block):
        return [self.word(0).narrow(I16).real_from_f16()]

    def minima(self, block):
        return [(self.word(0) >> 16).narrow(I16).real_from_f16() * -1.0]


FORMAT = Q4_1


_multiply, _dequantize = multiplier(Q4_1), dequantizer(Q4_1)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
