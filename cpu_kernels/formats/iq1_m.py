"""IQ1_M: 256 values as 32 lower bytes of indices | for each 8 values a nibble: 3 upper bits, shift | scales, 8 bytes.

Each 16 bits of the last hold four scales of 3 bits, for 16 values each, and a quarter of d f16, the lowest first.
Codebook and shift are those of IQ1_S.
"""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..lanes import I16
from ..tile import multiplier
from .codebook import Codebook, codebook
from .codebook_fields import spread


class IQ1_M(Codebook):
    BYTES, UNIT, SCALES = 56, 0.125, 2
    BITS, OFFSET = 5, 16
    ORDER = (*range(8, 14), *range(8))
    GRID = codebook("IQ1_M", 8)

    def unit_scale(self):
        low, high = self.word(12), self.word(13)
        bits = ((low >> 12) & 0xF) | ((low >> 24) & 0xF0) | ((high >> 4) & 0xF00) | ((high >> 16) & 0xF000)
        return bits.narrow(I16).real_from_f16() * self.UNIT

    @classmethod
    def indices(cls, words, block, part):
        return words.word(0, 1, block).bytes(), spread(words.item(8, 16, block), 4) & 7

    @classmethod
    def signs(cls, words, block):
        """1 or -1 for each 8 values."""
        return ((spread(words.item(8, 16, block), 4) >> 3) & 1) * -2 + 1

    @classmethod
    def signed(cls, entries, signs, word):
        return entries + signs.pick([4 * r + word // 2 for r in range(signs.count // 4) for _ in range(4)])

    def scales(self, block):
        scales = self.word(12 + block // 4) >> (16 * (block // 2 % 2) + 6 * (block % 2))
        return [self.odd_scale(scales & 7), self.odd_scale((scales >> 3) & 7)]


FORMAT = IQ1_M


_multiply, _dequantize = multiplier(IQ1_M), dequantizer(IQ1_M)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
