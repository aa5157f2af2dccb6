"""IQ3_S: 256 values in 110 bytes: d; for each 4 columns an entry of 8 + 1 bits; 32 bytes of signs; 8 scales of 4 bits.

d (2 s + 1)
"""

import numpy as np
import torch

from ..jit import jit, tl
from . import codebook
from .fields import byte, bytes_of, columns, half, halves_of, negated

VALUES, BYTES = 256, 110


def table() -> np.ndarray:
    return codebook.entries("IQ3_S")


@jit
def decode(block, table, c):
    entry = byte(block + 2 + c // 4) | (((byte(block + 66 + c // 32) >> (c // 4 % 8)) & 1) << 8)
    magnitude = tl.load(table + entry * 4 + c % 4).to(tl.float32)
    s = (byte(block + 106 + c // 64) >> (c // 32 % 2 * 4)) & 15
    return half(block) * (2 * s + 1).to(tl.float32) * negated(magnitude, (byte(block + 74 + c // 8) >> (c % 8)) & 1)


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    entry = bytes_of(blocks, 2 + c // 4) | (bytes_of(blocks, 66 + c // 32) >> c // 4 % 8 & 1) << 8
    magnitude = codebook.on_device("IQ3_S", blocks.device)[entry * 4 + c % 4].float()
    s = bytes_of(blocks, 106 + c // 64) >> c // 32 % 2 * 4 & 15
    negative = bytes_of(blocks, 74 + c // 8) >> c % 8 & 1
    return halves_of(blocks, 0) * (2 * s + 1) * torch.where(negative != 0, -magnitude, magnitude)
