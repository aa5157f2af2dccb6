"""IQ2_S: 256 values as d f16 | 32 lower bytes of indices | 32 bytes of signs | their upper bit pairs, 8 bytes | scales.

16 scales of 4 bits, for 16 values each.
"""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import multiplier
from .codebook import Codebook, codebook
from .codebook_fields import spread


class IQ2_S(Codebook):
    BYTES, HALF, UNIT, SCALES = 82, 0, 0.125, 2
    ORDER = (*range(16, 20), *(w for b in range(8) for w in (b, 8 + b)))
    GRID = codebook("IQ2_S")

    @classmethod
    def indices(cls, words, block, part):
        return words.word(0, 1, block).bytes(), spread(words.item(16, 8, block), 2)

    @classmethod
    def signs(cls, words, block):
        return words.word(8, 1, block).bytes()

    def scales(self, block):
        pair = self.fields.item(18, 8, block)
        return [self.odd_scale(pair & 15), self.odd_scale((pair >> 4) & 15)]


FORMAT = IQ2_S


_multiply, _dequantize = multiplier(IQ2_S), dequantizer(IQ2_S)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
