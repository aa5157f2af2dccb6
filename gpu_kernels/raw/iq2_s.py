"""IQ2_S: 256 values in 82 bytes: d; for each 8 columns an entry of 8 + 2 bits and a byte of signs; scales as IQ2_XS."""

import numpy as np
import torch

from ..jit import jit, tl
from . import codebook
from .fields import byte, bytes_of, columns, half, halves_of, negated

VALUES, BYTES = 256, 82


def table() -> np.ndarray:
    return codebook.entries("IQ2_S")


@jit
def decode(block, table, c):
    g = c // 8
    entry = byte(block + 2 + g) | (((byte(block + 66 + g // 4) >> (g % 4 * 2)) & 3) << 8)
    magnitude = tl.load(table + entry * 8 + c % 8).to(tl.float32)
    s = (byte(block + 74 + c // 32) >> (c // 16 % 2 * 4)) & 15
    return half(block) * (s.to(tl.float32) + 0.5) * 0.25 * negated(magnitude, (byte(block + 34 + g) >> (c % 8)) & 1)


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    g = c // 8
    entry = bytes_of(blocks, 2 + g) | (bytes_of(blocks, 66 + g // 4) >> g % 4 * 2 & 3) << 8
    magnitude = codebook.on_device("IQ2_S", blocks.device)[entry * 8 + c % 8].float()
    s = bytes_of(blocks, 74 + c // 32) >> c // 16 % 2 * 4 & 15
    negative = bytes_of(blocks, 34 + g) >> c % 8 & 1
    return halves_of(blocks, 0) * (s + 0.5) * 0.25 * torch.where(negative != 0, -magnitude, magnitude)
