"""IQ1_S: 256 values as d f16 | 32 lower bytes of indices | for each 32 values 16 bits: 4 x 3 upper bits, scale, shift.

value = scale x (entry of -1, 0, 1 plus or minus an eighth): codes are 8 x entry plus or minus 1; the top bit for minus.
"""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import multiplier
from .codebook import Codebook, codebook
from .codebook_fields import spread


class IQ1_S(Codebook):
    BYTES, HALF, UNIT = 50, 0, 0.125
    BITS, OFFSET = 5, 16
    ORDER = (*range(8, 12), *range(8))
    GRID = codebook("IQ1_S", 8)

    @classmethod
    def indices(cls, words, block, part):
        return words.word(0, 1, block).bytes(), spread(words.item(8, 16, block), 3)

    @classmethod
    def signs(cls, words, block):
        """1 or -1 in every byte."""
        return (((words.item(8, 16, block) >> 15) & 1) * -1 | 0x01010101).bytes()

    @classmethod
    def signed(cls, entries, signs, word):
        return entries + signs

    def scales(self, block):
        return [self.odd_scale((self.fields.item(8, 16, block) >> 12) & 7)]


FORMAT = IQ1_S


_multiply, _dequantize = multiplier(IQ1_S), dequantizer(IQ1_S)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
