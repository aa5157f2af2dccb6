"""IQ4_XS: 256 values as d f16 | upper scale bit pairs, 16 bits | 8 lower scale nibbles | 8 x 16 bytes of nibbles.

Each group of 32 is coded as in IQ4_NL, with its own scale of 6 bits; scale - 32.
"""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..lanes import I16
from ..tile import Format, multiplier
from .iq4_nl import STEPS


class IQ4_XS(Format):
    VALUES, BYTES, BITS, SIGNED = 256, 136, 8, True

    def decode(self):
        self.d, self.pairs, self.nibbles = self.word(0).narrow(I16).real_from_f16(), self.word(0) >> 16, self.word(1)

    def codes(self, block, word):
        nibbles = self.word_bytes(2 + 4 * block + word % 4)
        return self.lookup(STEPS, nibbles.slide(4 * (word // 4)) & 0x0F)

    def scales(self, block):
        scale = ((self.nibbles >> (4 * block)) & 15) | (((self.pairs >> (2 * block)) & 3) << 4)
        return [(scale - 32).real() * self.d]


FORMAT = IQ4_XS


_multiply, _dequantize = multiplier(IQ4_XS), dequantizer(IQ4_XS)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
