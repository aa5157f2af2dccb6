"""IQ2_XS: 256 values in 74 bytes: d; for each 8 columns 9 bits of an entry and 7 of signs; 16 scales of 4 bits."""

import numpy as np
import torch

from ..jit import jit, tl
from . import codebook
from .fields import byte, bytes_of, columns, even, even_of, half, halves_of, negated, pair, pairs_of

VALUES, BYTES = 256, 74


def table() -> np.ndarray:
    return codebook.entries("IQ2_XS")


@jit
def decode(block, table, c):
    q = pair(block + 2 + c // 8 * 2)
    magnitude = tl.load(table + (q & 511) * 8 + c % 8).to(tl.float32)
    s = (byte(block + 66 + c // 32) >> (c // 16 % 2 * 4)) & 15
    return half(block) * (s.to(tl.float32) + 0.5) * 0.25 * negated(magnitude, (even(q >> 9) >> (c % 8)) & 1)


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    q = pairs_of(blocks, 2 + c // 8 * 2)
    magnitude = codebook.on_device("IQ2_XS", blocks.device)[(q & 511) * 8 + c % 8].float()
    s = bytes_of(blocks, 66 + c // 32) >> c // 16 % 2 * 4 & 15
    negative = even_of(q >> 9) >> c % 8 & 1
    return halves_of(blocks, 0) * (s + 0.5) * 0.25 * torch.where(negative != 0, -magnitude, magnitude)
