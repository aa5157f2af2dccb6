"""Q5_0: 32 values as d f16 | the codes' fifth bits, 32 | low nibbles (0..15), high nibbles (16..31); code - 16."""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import Format, flags, multiplier


class Q5_0(Format):
    VALUES, BYTES, HALF, BITS = 32, 22, 0, 5
    OFFSET = 16

    def codes(self, block, word):
        nibbles = self.word_bytes(1 + word % 4)
        return (nibbles.slide(4 * (word // 4)) & 0x0F) | flags(self.word_bytes(0), word, 16)

    def scales(self, block):
        return [self.half().real_from_f16()]


FORMAT = Q5_0


_multiply, _dequantize = multiplier(Q5_0), dequantizer(Q5_0)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
