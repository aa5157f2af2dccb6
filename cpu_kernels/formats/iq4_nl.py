"""IQ4_NL: 32 values as d f16 | low nibbles (indices 0..15), high nibbles (16..31) into a table of 16 uneven steps."""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import Format, multiplier

STEPS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


class IQ4_NL(Format):
    VALUES, BYTES, HALF, BITS, SIGNED = 32, 18, 0, 8, True

    def codes(self, block, word):
        nibbles = self.word_bytes(word % 4)
        return self.lookup(STEPS, nibbles.slide(4 * (word // 4)) & 0x0F)

    def scales(self, block):
        return [self.half().real_from_f16()]


FORMAT = IQ4_NL


_multiply, _dequantize = multiplier(IQ4_NL), dequantizer(IQ4_NL)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
