"""IQ1_S: 256 values in 50 bytes: d; 32 lower bytes of entries of -1, 0 and 1; for each 32 columns 16 bits.

These are four times 3 upper bits of an entry, 3 bits s, and the sign of the 1/8 that is added. d (2 s + 1) (v + 1/8)
"""

import numpy as np
import torch

from ..jit import jit, tl
from . import codebook
from .fields import byte, bytes_of, columns, half, halves_of, negated, pair, pairs_of

VALUES, BYTES = 256, 50


def table() -> np.ndarray:
    return codebook.entries("IQ1_S")


@jit
def decode(block, table, c):
    word, g = pair(block + 34 + c // 32 * 2), c // 8
    entry = byte(block + 2 + g) | (((word >> (g % 4 * 3)) & 7) << 8)
    value = tl.load(table + entry * 8 + c % 8).to(tl.float32) + negated(0.125, word >> 15)
    return half(block) * (2 * ((word >> 12) & 7) + 1).to(tl.float32) * value


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    word, g = pairs_of(blocks, 34 + c // 32 * 2), c // 8
    entry = bytes_of(blocks, 2 + g) | (word >> g % 4 * 3 & 7) << 8
    value = codebook.on_device("IQ1_S", blocks.device)[entry * 8 + c % 8] + (0.125 - 0.25 * (word >> 15))
    return halves_of(blocks, 0) * (2 * (word >> 12 & 7) + 1) * value
