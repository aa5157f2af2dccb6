"""IQ4_NL: 32 values in 18 bytes: d, 16 bytes of 4 bits as in Q4_1, which number 16 unevenly spaced values."""

import gguf
import numpy as np
import torch

from ..jit import jit, tl
from . import codebook
from .fields import byte, bytes_of, columns, half, halves_of

VALUES, BYTES = 32, 18


def table() -> np.ndarray:
    return np.array(gguf.quants.IQ4_NL.kvalues, np.int8)


@jit
def decode(block, table, c):
    q = (byte(block + 2 + c % 16) >> (c // 16 * 4)) & 15
    return half(block) * tl.load(table + q).to(tl.float32)


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    q = bytes_of(blocks, 2 + c % 16) >> c // 16 * 4 & 15
    return halves_of(blocks, 0) * codebook.on_device("IQ4_NL", blocks.device)[q].float()
