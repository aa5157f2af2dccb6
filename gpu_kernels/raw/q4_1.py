"""Q4_1: 32 values in 20 bytes: d, m, 16 bytes of 4 bits. Column c < 16 is the lower half of a byte. d q + m."""

import torch

from ..jit import jit, tl
from .fields import byte, bytes_of, columns, half, halves_of

VALUES, BYTES = 32, 20


@jit
def decode(block, table, c):
    q = (byte(block + 4 + c % 16) >> (c // 16 * 4)) & 15
    return half(block) * q.to(tl.float32) + half(block + 2)


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    q = bytes_of(blocks, 4 + c % 16) >> c // 16 * 4 & 15
    return halves_of(blocks, 0) * q + halves_of(blocks, 2)
