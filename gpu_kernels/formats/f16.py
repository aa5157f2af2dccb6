"""F16: 2 bytes a weight. A word holds two positions of a lane, the even one low."""

import torch

from ..jit import jit, tl
from .format import Format, Planes
from .one_scale import scale
from .packing import pack_values, unpack_values
from .words import load_words, low_half


def rearrange(raw: torch.Tensor) -> Planes:
    return Planes(pack_values(raw, 2))


def dequantize(planes: Planes) -> torch.Tensor:
    return unpack_values(planes.codes, 2).view(torch.float16).float()


@jit
def unpack(codes, high, row, s, mask, S: tl.constexpr, GROUP: tl.constexpr):
    words = load_words(codes, row, s, mask, 16 * S, 4 * S * GROUP, 4)
    return words, words


@jit
def code(first, second, P: tl.constexpr):
    return low_half(first >> (16 * P))


FORMAT = Format("F16", 1, 2, rearrange, dequantize, unpack, code, scale, groups=4, scaled=False)
