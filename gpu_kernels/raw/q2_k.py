"""Q2_K: 256 values in 84 bytes: 16 scales and minima of 4 bits, 64 bytes of 2 bits, d, dmin.

A byte of codes holds the same column of four neighbouring 32s. d scale q - dmin minimum.
"""

import torch

from ..jit import jit, tl
from .fields import byte, bytes_of, columns, half, halves_of

VALUES, BYTES = 256, 84


@jit
def decode(block, table, c):
    q = (byte(block + 16 + c // 128 * 32 + c % 32) >> (c // 32 % 4 * 2)) & 3
    both = byte(block + c // 16)
    scale, minimum = half(block + 80) * (both & 15).to(tl.float32), half(block + 82) * (both >> 4).to(tl.float32)
    return scale * q.to(tl.float32) - minimum


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    q = bytes_of(blocks, 16 + c // 128 * 32 + c % 32) >> c // 32 % 4 * 2 & 3
    both = bytes_of(blocks, c // 16)
    return halves_of(blocks, 80) * (both & 15) * q - halves_of(blocks, 82) * (both >> 4)
