"""IQ1_M: 256 values in 56 bytes: 32 lower bytes of entries as IQ1_S; for each 8 columns 4 bits; four 16-bit words.

The 4 bits are 3 upper bits of an entry and the sign of the 1/8. A word has four scales of 3 bits, and 4 bits of d.
d (2 s + 1) (v + 1/8)
"""

import numpy as np
import torch

from ..jit import jit, tl
from . import codebook
from .fields import byte, bytes_of, columns, negated, pair, pairs_of

VALUES, BYTES = 256, 56


def table() -> np.ndarray:
    return codebook.entries("IQ1_M")


@jit
def decode(block, table, c):
    bits = byte(block + 49) >> 4
    bits |= (byte(block + 51) & 0xF0) | ((byte(block + 53) & 0xF0) << 4) | ((byte(block + 55) & 0xF0) << 8)
    d = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    s = (pair(block + 48 + c // 64 * 2) >> (c // 16 % 4 * 3)) & 7
    upper = byte(block + 32 + c // 16) >> (c // 8 % 2 * 4)
    entry = byte(block + c // 8) | ((upper & 7) << 8)
    value = tl.load(table + entry * 8 + c % 8).to(tl.float32) + negated(0.125, upper & 8)
    return d * (2 * s + 1).to(tl.float32) * value


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    quarters = bytes_of(blocks, torch.arange(49, 57, 2, device=blocks.device)) >> 4
    bits = (quarters << torch.arange(0, 16, 4, device=blocks.device)).sum(1, keepdim=True)
    d = bits.to(torch.int16).view(torch.float16).float()
    s = pairs_of(blocks, 48 + c // 64 * 2) >> c // 16 % 4 * 3 & 7
    upper = bytes_of(blocks, 32 + c // 16) >> c // 8 % 2 * 4
    entry = bytes_of(blocks, c // 8) | (upper & 7) << 8
    value = codebook.on_device("IQ1_M", blocks.device)[entry * 8 + c % 8] + (0.125 - 0.25 * (upper >> 3 & 1))
    return d * (2 * s + 1) * value
