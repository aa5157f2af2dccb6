"""Q4_K: 256 values as d f16 | dmin f16 | 8 scales and 8 minima of 6 bits in 12 bytes | 128 bytes of nibbles.

Nibble bytes 32p .. hold groups 2p (low) and 2p + 1 (high) of 32 values. value = (d x scale) x code - dmin x minimum.
"""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..lanes import I16
from ..tile import Format, byte, multiplier


class Q4_K(Format):
    VALUES, BYTES, BITS = 256, 144, 4
    NIBBLES = 4  # the first word of nibbles

    def decode(self):
        self.d = self.word(0).narrow(I16).real_from_f16()
        self.dmin = (self.word(0) >> 16).narrow(I16).real_from_f16()
        low, minimum, high = (self.word(i) for i in (1, 2, 3))
        # Four bytes a lane, one for each group of 32: groups 0..3, then 4..7.
        self.scale = [low & 0x3F3F3F3F, (high & 0x0F0F0F0F) | ((low >> 2) & 0x30303030)]
        self.minimum = [minimum & 0x3F3F3F3F, ((high >> 4) & 0x0F0F0F0F) | ((minimum >> 2) & 0x30303030)]

    def codes(self, block, word):
        return self.word_bytes(self.NIBBLES + 8 * (block // 2) + word).slide(4 * (block % 2)) & 0x0F

    def scales(self, block):
        return [byte(self.scale[block // 4], block % 4) * self.d]

    def minima(self, block):
        return [byte(self.minimum[block // 4], block % 4) * self.dmin]


FORMAT = Q4_K


_multiply, _dequantize = multiplier(Q4_K), dequantizer(Q4_K)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
