"""IQ2_XS: 256 values as d f16 | 32 x 16 bits: index of 9, signs of 7 | 16 scales of 4 bits, for 16 values each."""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..machine import LANES
from ..tile import multiplier
from .codebook import Codebook, codebook, even


class IQ2_XS(Codebook):
    BYTES, HALF, UNIT, SCALES = 74, 0, 0.125, 2
    ORDER = (16, 17, *range(16))
    GRID = codebook("IQ2_XS")

    @classmethod
    def indices(cls, words, block, part):
        return _halves(words, block, 0), _halves(words, block, 1) & 1

    @classmethod
    def signs(cls, words, block):
        return even(_halves(words, block, 1) >> 1)

    def scales(self, block):
        pair = self.fields.item(16, 8, block)
        return [self.odd_scale(pair & 15), self.odd_scale((pair >> 4) & 15)]


def _halves(words, block, upper):
    """The lower or upper bytes of four 16-bit fields for each row."""
    lanes = [4 * r + i + upper for r in range(LANES) for i in (0, 2, 4 * LANES, 4 * LANES + 2)]
    return words.word(0, 2, block).bytes().pick(lanes, words.word(1, 2, block).bytes())


FORMAT = IQ2_XS


_multiply, _dequantize = multiplier(IQ2_XS), dequantizer(IQ2_XS)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
