"""Q4_K: 256 values as d f16 | dmin f16 | 12 bytes of 6-bit scales and minima | 128 bytes of nibbles.

Nibble bytes 32 j .. hold sub-blocks 2 j (low) and 2 j + 1 (high). 4.5 bits a weight: codes 4, scales 0.5.
"""

import torch

from ..jit import jit, tl
from .format import Format, Planes
from .k_scales import rearrange_scales, scale, scales_and_minima
from .packing import pack_nibbles, split_nibbles, unpack_nibbles
from .words import load_words, nibble


def rearrange(raw: torch.Tensor) -> Planes:
    blocks = raw.unflatten(-1, (-1, 144))
    codes = split_nibbles(blocks[..., 16:].unflatten(-1, (4, 32))).flatten(1, 3)
    return Planes(pack_nibbles(codes), scales=rearrange_scales(blocks[..., :16]))


def dequantize(planes: Planes) -> torch.Tensor:
    assert planes.scales is not None
    scale, minimum = scales_and_minima(planes.scales)
    return (scale.unsqueeze(-1) * unpack_nibbles(planes.codes).float() - minimum.unsqueeze(-1)).flatten(-2)


@jit
def unpack(codes, high, row, s, mask, S: tl.constexpr, GROUP: tl.constexpr):
    words = load_words(codes, row, s, mask, 4 * S, 0, 4)
    return words, words


@jit
def code(first, second, P: tl.constexpr):
    return nibble(first, P, 0)


FORMAT = Format("Q4_K", 256, 144, rearrange, dequantize, unpack, code, scale, minimum=True)
