"""IQ3_XXS: 256 values in 98 bytes: d; 64 entries of 4 magnitudes; for each 32 signs and a scale as in IQ2_XXS.

d (s + 1/2) / 2
"""

import numpy as np
import torch

from ..jit import jit, tl
from . import codebook
from .fields import byte, bytes_of, columns, half, halves_of, negated, seven_signs, seven_signs_of

VALUES, BYTES = 256, 98


def table() -> np.ndarray:
    return codebook.entries("IQ3_XXS")


@jit
def decode(block, table, c):
    magnitude = tl.load(table + byte(block + 2 + c // 4) * 4 + c % 4).to(tl.float32)
    word = block + 66 + c // 32 * 4
    scale = half(block) * ((byte(word + 3) >> 4).to(tl.float32) + 0.5) * 0.5
    return scale * negated(magnitude, (seven_signs(word, c // 8 % 4) >> (c % 8)) & 1)


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    magnitude = codebook.on_device("IQ3_XXS", blocks.device)[bytes_of(blocks, 2 + c // 4) * 4 + c % 4].float()
    word = 66 + c // 32 * 4
    scale = halves_of(blocks, 0) * ((bytes_of(blocks, word + 3) >> 4) + 0.5) * 0.5
    negative = seven_signs_of(blocks, word, c // 8 % 4) >> c % 8 & 1
    return scale * torch.where(negative != 0, -magnitude, magnitude)
