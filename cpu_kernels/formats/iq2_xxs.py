"""IQ2_XXS: 256 values as d f16 | 8 groups of 4 indices of 8 bits and, in 32 bits, 4 x 7 signs and a scale of 4 bits."""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import multiplier
from .codebook import Codebook, codebook, even
from .codebook_fields import spread


class IQ2_XXS(Codebook):
    BYTES, HALF, UNIT = 66, 0, 0.125
    GRID = codebook("IQ2_XXS")

    @classmethod
    def indices(cls, words, block, part):
        return words.word(0, 2, block).bytes(), None

    @classmethod
    def signs(cls, words, block):
        return even(spread(words.word(1, 2, block), 7))

    def scales(self, block):
        return [self.odd_scale(self.word(2 * block + 1) >> 28)]


FORMAT = IQ2_XXS


_multiply, _dequantize = multiplier(IQ2_XXS), dequantizer(IQ2_XXS)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
