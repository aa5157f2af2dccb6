"""IQ2_XXS: 256 values in 66 bytes: d; then for each 32 four entries of 8 magnitudes, and a word of signs and a scale.

The word has four times 7 signs, whose number is made even by an eighth, and 4 bits s. d (s + 1/2) / 4.
"""

import numpy as np
import torch

from ..jit import jit, tl
from . import codebook
from .fields import byte, bytes_of, columns, half, halves_of, negated, seven_signs, seven_signs_of

VALUES, BYTES = 256, 66


def table() -> np.ndarray:
    return codebook.entries("IQ2_XXS")


@jit
def decode(block, table, c):
    word, g = block + 6 + c // 32 * 8, c // 8 % 4
    magnitude = tl.load(table + byte(word - 4 + g) * 8 + c % 8).to(tl.float32)
    scale = half(block) * ((byte(word + 3) >> 4).to(tl.float32) + 0.5) * 0.25
    return scale * negated(magnitude, (seven_signs(word, g) >> (c % 8)) & 1)


def twin(blocks: torch.Tensor) -> torch.Tensor:
    c = columns(blocks, VALUES)
    word, g = 6 + c // 32 * 8, c // 8 % 4
    magnitude = codebook.on_device("IQ2_XXS", blocks.device)[bytes_of(blocks, word - 4 + g) * 8 + c % 8].float()
    scale = halves_of(blocks, 0) * ((bytes_of(blocks, word + 3) >> 4) + 0.5) * 0.25
    negative = seven_signs_of(blocks, word, g) >> c % 8 & 1
    return scale * torch.where(negative != 0, -magnitude, magnitude)
