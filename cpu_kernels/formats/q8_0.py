"""Q8_0: 32 values as d f16 | 32 codes int8."""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import Format, multiplier


class Q8_0(Format):
    VALUES, BYTES, HALF, BITS, SIGNED = 32, 34, 0, 8, True

    def codes(self, block, word):
        return self.word_bytes(word)

    def scales(self, block):
        return [self.half().real_from_f16()]


FORMAT = Q8_0


_multiply, _dequantize = multiplier(Q8_0), dequantizer(Q8_0)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
