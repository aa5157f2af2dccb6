"""Q6_K: 256 values as 128 bytes of low nibbles | 64 bytes of high bit pairs | 16 scales int8 | d f16; code - 32.

Half h has 64 low bytes and 32 high bytes. Group g of 32 values takes the low (g < 2) or high nibbles of low bytes
32(g % 2) .., and bits 2g, 2g + 1 of the high bytes. A scale serves 16 values.
"""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import Format, byte, multiplier


class Q6_K(Format):
    VALUES, BYTES, HALF, BITS, SCALES = 256, 210, 208, 6, 2
    OFFSET = 32
    # Scales; then of each half the high bits beside the low ones of group 0, the low ones of group 1.
    ORDER = (*range(48, 52), *(w for i in range(8) for w in (i, 32 + i)), *range(8, 16),
             *(w for i in range(16, 24) for w in (i, 24 + i)), *range(24, 32))  # fmt: skip

    def decode(self):
        self.d = self.half().real_from_f16()

    def codes(self, block, word):
        half, group = divmod(block, 4)
        low = self.word_bytes(16 * half + 8 * (group % 2) + word).slide(4 * (group // 2)) & 0x0F
        return low | (self.word_bytes(32 + 8 * half + word).slide(2 * group - 4) & 0x30)

    def scales(self, block):
        quad = self.word(48 + block // 2)
        return [byte(quad, 2 * (block % 2) + i, signed=True) * self.d for i in range(2)]


FORMAT = Q6_K


_multiply, _dequantize = multiplier(Q6_K), dequantizer(Q6_K)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
