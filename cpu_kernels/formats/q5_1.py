"""Q5_1: 32 values as d f16 | m f16 | the codes' fifth bits, 32 | low nibbles, high nibbles; value = d x code + m."""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..lanes import I16
from ..tile import Format, flags, multiplier


class Q5_1(Format):
    VALUES, BYTES, BITS = 32, 24, 5

    def codes(self, block, word):
        nibbles = self.word_bytes(2 + word % 4)
        return (nibbles.slide(4 * (word // 4)) & 0x0F) | flags(self.word_bytes(1), word, 16)

    def scales(self, block):
        return [self.word(0).narrow(I16).real_from_f16()]

    def minima(self, block):
        return [(self.word(0) >> 16).narrow(I16).real_from_f16() * -1.0]


FORMAT = Q5_1


_multiply, _dequantize = multiplier(Q5_1), dequantizer(Q5_1)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
