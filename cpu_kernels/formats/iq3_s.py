"""IQ3_S: 256 values as d f16 | 64 lower bytes of indices of 4 values | their ninth bits | 32 bytes of signs | scales.

8 bytes of ninth bits, 8 scales of 4 bits, for 32 values each.
"""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import multiplier
from .codebook import Codebook, codebook
from .codebook_fields import spread


class IQ3_S(Codebook):
    BYTES, HALF, UNIT = 110, 0, 1.0
    BITS, OFFSET = 5, 16
    ORDER = (16, 17, 26, *(w for b in range(8) for w in (2 * b, 2 * b + 1, 18 + b)))
    GRID = codebook("IQ3_S")

    @classmethod
    def indices(cls, words, block, part):
        return words.word(part, 2, block).bytes(), spread(words.item(16, 8, block) >> (4 * part), 1)

    @classmethod
    def signs(cls, words, block):
        return words.word(18, 1, block).bytes()

    def scales(self, block):
        return [self.odd_scale(self.fields.item(26, 4, block) & 15)]


FORMAT = IQ3_S


_multiply, _dequantize = multiplier(IQ3_S), dequantizer(IQ3_S)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
