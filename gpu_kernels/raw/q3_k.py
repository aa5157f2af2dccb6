"""Q3_K: 256 values in 110 bytes: 32 bytes of highest bits, 64 bytes of 2 bits as in Q2_K, 12 of scales, d.

Of the 16 scales (6 bits less 32) the lower halves fill 8 bytes, the upper two bits four. The highest bit of a code is
set where nothing is subtracted. d scale (q - 4).
"""

import torch

from ..jit import jit, tl
from .fields import byte, bytes_of, columns, half, halves_of

VALUES, BYTES = 256, 110


@jit
def decode(block, table, c):
    low = (byte(block + 32 + c // 128 * 32 + c % 32) >> (c // 32 % 4 * 2)) & 3
    high = (byte(block + c % 32) >> (c // 32)) & 1
    i = c // 16
    scale = (byte(block + 96 + i % 8) >> (i // 8 * 4)) & 15
    scale |= ((byte(block + 104 + i % 4) >> (i // 4 * 2)) & 3) << 4
    return half(block + 108) * (scale - 32).to(tl.float32) * ((low | (high << 2)) - 4).to(tl.float32)


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    low = bytes_of(blocks, 32 + c // 128 * 32 + c % 32) >> c // 32 % 4 * 2 & 3
    high = bytes_of(blocks, c % 32) >> c // 32 & 1
    i = c // 16
    scale = bytes_of(blocks, 96 + i % 8) >> i // 8 * 4 & 15 | (bytes_of(blocks, 104 + i % 4) >> i // 4 * 2 & 3) << 4
    return halves_of(blocks, 108) * (scale - 32) * ((low | high << 2) - 4)
