"""Q2_K: 256 values as 16 bytes of scale (low nibble) and minimum (high) | 64 bytes of 2-bit codes | d f16 | dmin f16.

Code bytes 32h .. of half h hold group g of 32 values in bits 2g, 2g + 1. A scale serves 16 values.
"""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..lanes import I16
from ..tile import Format, byte, multiplier


class Q2_K(Format):
    VALUES, BYTES, BITS, SCALES = 256, 84, 2, 2
    ORDER = (20, *range(20))

    def decode(self):
        self.d = self.word(20).narrow(I16).real_from_f16()
        self.dmin = (self.word(20) >> 16).narrow(I16).real_from_f16()
        self.nibbles = [self.word(i) for i in range(4)]

    def codes(self, block, word):
        return self.word_bytes(4 + 8 * (block // 4) + word).slide(2 * (block % 4)) & 0x03

    def scales(self, block):
        pair = self.nibbles[block // 2] & 0x0F0F0F0F
        return [byte(pair, 2 * (block % 2) + i) * self.d for i in range(2)]

    def minima(self, block):
        pair = (self.nibbles[block // 2] >> 4) & 0x0F0F0F0F
        return [byte(pair, 2 * (block % 2) + i) * self.dmin for i in range(2)]


FORMAT = Q2_K


_multiply, _dequantize = multiplier(Q2_K), dequantizer(Q2_K)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
