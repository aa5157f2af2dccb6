"""Q4_0: 32 values as d f16 | 16 bytes of nibbles, columns 0 .. 15 low; code - 8. 4.5 bits a weight."""

import torch

from ..jit import jit, tl
from .format import Format, Planes
from .one_scale import scale
from .packing import as_float16, pack_nibbles, split_nibbles, unpack_nibbles
from .q4_k import unpack
from .words import nibble


def rearrange(raw: torch.Tensor) -> Planes:
    blocks = raw.unflatten(-1, (-1, 18))
    codes = split_nibbles(blocks[..., 2:]).flatten(-2)
    return Planes(pack_nibbles(codes), scales=as_float16(blocks[..., :2]).flatten(1))


def dequantize(planes: Planes) -> torch.Tensor:
    assert planes.scales is not None
    return (planes.scales.float().unsqueeze(-1) * (unpack_nibbles(planes.codes).float() - 8)).flatten(-2)


@jit
def code(first, second, P: tl.constexpr):
    return nibble(first, P, 8)


FORMAT = Format("Q4_0", 32, 18, rearrange, dequantize, unpack, code, scale)
