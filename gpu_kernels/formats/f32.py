"""F32: 4 bytes a weight; each position of a sub-block is a load of its own."""

import torch

from ..jit import jit, tl
from .format import Format, Planes
from .one_scale import scale
from .packing import pack_values, unpack_values
from .words import load_words


def rearrange(raw: torch.Tensor) -> Planes:
    return Planes(pack_values(raw, 4))


def dequantize(planes: Planes) -> torch.Tensor:
    return unpack_values(planes.codes, 4).view(torch.float32)


@jit
def unpack(codes, high, row, s, mask, S: tl.constexpr, GROUP: tl.constexpr):
    words = load_words(codes, row, s, mask, 32 * S, 4 * S * GROUP, 4)
    return words, words


@jit
def code(first, second, P: tl.constexpr):
    return first.to(tl.float32, bitcast=True)


FORMAT = Format("F32", 1, 4, rearrange, dequantize, unpack, code, scale, groups=8, scaled=False)
