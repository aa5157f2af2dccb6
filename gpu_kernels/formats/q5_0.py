"""Q5_0: 32 values as d f16 | 32 fifth bits | 16 bytes of nibbles, columns 0 .. 15 low; code - 16. 5.5 bits a weight."""

import torch

from ..jit import jit, tl
from .format import Format, Planes
from .one_scale import scale
from .packing import as_float16, pack_fifth_bits, pack_nibbles, split_nibbles, unpack_fifth_bits, unpack_nibbles
from .q5_k import unpack
from .words import byte


def rearrange(raw: torch.Tensor) -> Planes:
    blocks = raw.unflatten(-1, (-1, 22))
    codes = split_nibbles(blocks[..., 6:]).flatten(-2)
    places = torch.arange(8, dtype=torch.uint8, device=raw.device)
    fifth = (blocks[..., 2:6].unsqueeze(-1) >> places & 1).flatten(-2)
    return Planes(pack_nibbles(codes), pack_fifth_bits(fifth), as_float16(blocks[..., :2]).flatten(1))


def dequantize(planes: Planes) -> torch.Tensor:
    assert planes.high is not None and planes.scales is not None
    codes = unpack_nibbles(planes.codes) | unpack_fifth_bits(planes.high) << 4
    return (planes.scales.float().unsqueeze(-1) * (codes.float() - 16)).flatten(-2)


@jit
def code(first, second, P: tl.constexpr):
    if P % 2 == 0:
        return byte(first, P // 2, 31, 16)
    else:
        return byte(second, P // 2, 31, 16)


FORMAT = Format("Q5_0", 32, 22, rearrange, dequantize, unpack, code, scale, crowded=True)
