"""IQ3_XXS: 256 values as d f16 | 64 indices of 4 values | for each 32 values 32 bits: 4 x 7 signs, scale of 4 bits."""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import multiplier
from .codebook import Codebook, codebook, even
from .codebook_fields import spread


class IQ3_XXS(Codebook):
    BYTES, HALF, UNIT = 98, 0, 0.25
    ORDER = tuple(w for b in range(8) for w in (2 * b, 2 * b + 1, 16 + b))
    GRID = codebook("IQ3_XXS")

    @classmethod
    def indices(cls, words, block, part):
        return words.word(part, 2, block).bytes(), None

    @classmethod
    def signs(cls, words, block):
        return even(spread(words.word(16, 1, block), 7))

    def scales(self, block):
        return [self.odd_scale(self.word(16 + block) >> 28)]


FORMAT = IQ3_XXS


_multiply, _dequantize = multiplier(IQ3_XXS), dequantizer(IQ3_XXS)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
