"""Q4_0: 32 values as d f16 | low nibbles (codes 0..15), high nibbles (16..31); code - 8."""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import Format, multiplier


class Q4_0(Format):
    VALUES, BYTES, HALF, BITS = 32, 18, 0, 4
    OFFSET = 8

    def codes(self, block, word):
        nibbles = self.word_bytes(word % 4)
        return nibbles.slide(4 * (word // 4)) & 0x0F

    def scales(self, block):
        return [self.half().real_from_f16()]


FORMAT = Q4_0


_multiply, _dequantize = multiplier(Q4_0), dequantizer(Q4_0)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
