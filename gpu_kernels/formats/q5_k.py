"""Q5_K: 256 values as d f16 | dmin f16 | 12 bytes of 6-bit scales and minima | 32 bytes of fifth bits | 128 of nibbles.

Nibbles as in Q4_K; bit j of fifth-bit byte l belongs to column l of sub-block j. 5.5 bits a weight.
"""

import torch

from ..jit import jit, tl
from .format import Format, Planes
from .k_scales import rearrange_scales, scale, scales_and_minima
from .packing import pack_fifth_bits, pack_nibbles, split_nibbles, unpack_fifth_bits, unpack_nibbles
from .words import byte, load_each, load_words, upper_and_nibbles


def rearrange(raw: torch.Tensor) -> Planes:
    blocks = raw.unflatten(-1, (-1, 176))
    codes = split_nibbles(blocks[..., 48:].unflatten(-1, (4, 32))).flatten(1, 3)
    places = torch.arange(8, dtype=torch.uint8, device=raw.device).view(8, 1)
    fifth = (blocks[..., 16:48].unsqueeze(-2) >> places & 1).flatten(1, 2)
    return Planes(pack_nibbles(codes), pack_fifth_bits(fifth), rearrange_scales(blocks[..., :16]))


def dequantize(planes: Planes) -> torch.Tensor:
    assert planes.high is not None and planes.scales is not None
    codes = unpack_nibbles(planes.codes) | unpack_fifth_bits(planes.high) << 4
    scale, minimum = scales_and_minima(planes.scales)
    return (scale.unsqueeze(-1) * codes.float() - minimum.unsqueeze(-1)).flatten(-2)


@jit
def unpack(codes, high, row, s, mask, S: tl.constexpr, GROUP: tl.constexpr):
    """Even and odd positions as the four bytes of a word each, 5 bits in a byte."""
    words = load_words(codes, row, s, mask, 4 * S, 0, 4)
    fifth = load_each(high, row, s, mask, S)[:, :, None]
    place = tl.arange(0, 4)[None, None, :] * 2  # of the even position's bit in its byte; known for each register
    even = upper_and_nibbles(fifth, words, tl.maximum(4 - place, 0), tl.maximum(place - 4, 0))
    odd = upper_and_nibbles(fifth, words >> 4, tl.maximum(3 - place, 0), tl.maximum(place - 3, 0))
    return even, odd


@jit
def code(first, second, P: tl.constexpr):
    if P % 2 == 0:
        return byte(first, P // 2, 31, 0)
    else:
        return byte(second, P // 2, 31, 0)


FORMAT = Format("Q5_K", 256, 176, rearrange, dequantize, unpack, code, scale, minimum=True, crowded=True)
