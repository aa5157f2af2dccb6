"""IQ4_XS: 256 values as d f16 | 8 x 2 upper bits of scales | 8 x 4 lower bits | 128 bytes of nibbles.

Nibbles of a sub-block: columns 0 .. 15 low. A nibble numbers one of 16 values; scale = d x (6 bits - 32). 4.25 bits a
weight: codes 4, scales 0.25 (the block's first 8 bytes as they are).
"""

import torch

from ..jit import jit, tl
from .format import Format, Planes
from .packing import as_bytes, as_float16, as_words, pack_nibbles, split_nibbles, unpack_nibbles
from .q4_k import unpack
from .words import load_words, low_half, nibble

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def rearrange(raw: torch.Tensor) -> Planes:
    blocks = raw.unflatten(-1, (-1, 136))
    codes = split_nibbles(blocks[..., 8:].unflatten(-1, (8, 16))).flatten(-2).flatten(1, 2)
    return Planes(pack_nibbles(codes), scales=as_words(blocks[..., :8]))


def dequantize(planes: Planes) -> torch.Tensor:
    assert planes.scales is not None
    header = as_bytes(planes.scales)
    places = torch.arange(0, 8, 2, dtype=torch.uint8, device=header.device)
    upper = (header[..., 2:4].unsqueeze(-1) >> places & 3).flatten(-2)
    lower = split_nibbles(header[..., 4:]).transpose(-1, -2).flatten(-2)
    scales = as_float16(header[..., :2]).float() * ((lower | upper << 4).float() - 32)
    values = torch.tensor(VALUES, dtype=torch.float32, device=header.device)
    return (scales.flatten(1).unsqueeze(-1) * values[unpack_nibbles(planes.codes).int()]).flatten(1)


@jit
def code(first, second, P: tl.constexpr):
    """The value by arithmetic: a polynomial of degree 4 through the 7th value stays within 0.45 of all of VALUES.

    Adding 1.5 x 2**23 in the last step rounds it to an integer; the 0.05 left are far more than fused and separate
    roundings differ by. 4 FMA for a value; tables in memory or in registers cost more.
    """
    n = nibble(first, P, 7)
    slope = ((0.001285832557142207 * n + 0.07788471489249824) * n - 0.2421271861771938) * n + 11.61281693056334
    return (slope * n + 12582902.0) - 12582912.0


@jit
def scale(scales, blocks, row, s, mask, S: tl.constexpr):
    first, lower = tl.split(load_words(scales, row, s >> 3, mask, S // 4, 0, 2))
    j = s & 7
    bits = ((lower >> (4 * j)) & 15) | (((first >> (2 * j + 16)) & 3) << 4)
    d = low_half(first) * ((bits | 0x4B000000).to(tl.float32, bitcast=True) - 8388640.0)
    return d, d, d


FORMAT = Format("IQ4_XS", 256, 136, rearrange, dequantize, unpack, code, scale, crowded=True)
