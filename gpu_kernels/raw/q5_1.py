"""Q5_1: 32 values in 24 bytes: d, m, 32 highest bits, 16 bytes of 4 bits as in Q4_1. d q + m."""

import torch

from ..jit import jit, tl
from .fields import byte, bytes_of, columns, half, halves_of

VALUES, BYTES = 32, 24


@jit
def decode(block, table, c):
    low = (byte(block + 8 + c % 16) >> (c // 16 * 4)) & 15
    high = (byte(block + 4 + c // 8) >> (c % 8)) & 1
    return half(block) * (low | (high << 4)).to(tl.float32) + half(block + 2)


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    low = bytes_of(blocks, 8 + c % 16) >> c // 16 * 4 & 15
    high = bytes_of(blocks, 4 + c // 8) >> c % 8 & 1
    return halves_of(blocks, 0) * (low | high << 4) + halves_of(blocks, 2)
