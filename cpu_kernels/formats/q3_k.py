"""Q3_K: 256 values as 32 bytes of third bits | 64 of 2-bit codes | 16 scales of 6 bits in 12 bytes | d f16; code - 4.

Code bytes 32h .. of half h hold group g of 32 values in bits 2g, 2g + 1; its third bits are bit 4h + g of the first 32
bytes. Scales: low nibbles (0..7) and high nibbles (8..15) of 8 bytes, then the upper bit pairs in 4 bytes; scale - 32;
for 16 values each.
"""

from ..dequantizer import dequantizer
from ..jit import dequantize_kernel, multiply_kernel
from ..tile import Format, byte, multiplier


class Q3_K(Format):
    VALUES, BYTES, HALF, BITS, SCALES = 256, 110, 108, 3, 2
    OFFSET = 4
    ORDER = (24, 25, 26, *(w for i in range(8) for w in (i, 8 + i)), *range(16, 24))

    def decode(self):
        self.d = self.half().real_from_f16()
        low, pairs = [self.word(24), self.word(25)], self.word(26)
        self.packed = [
            ((low[i % 2] >> (4 * (i // 2))) & 0x0F0F0F0F) | (((pairs >> (2 * i)) & 0x03030303) << 4) for i in range(4)
        ]

    def codes(self, block, word):
        low = self.word_bytes(8 + 8 * (block // 4) + word).slide(2 * (block % 4)) & 0x03
        return low | (self.word_bytes(word).slide(block - 2) & 0x04)

    def scales(self, block):
        return [(byte(self.packed[block // 2], 2 * (block % 2) + i) - 32.0) * self.d for i in range(2)]


FORMAT = Q3_K


_multiply, _dequantize = multiplier(Q3_K), dequantizer(Q3_K)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
