"""Q6_K: 256 values as 128 bytes of nibbles | 64 bytes of upper bit pairs | 16 scales int8 | d f16.

Of each half of 128: nibble bytes 32 g .. hold sub-blocks g (low) and g + 2 (high), pair bytes l the columns l of all
four sub-blocks. A scale for 16 values; code - 32. 6.5625 bits a weight: codes 4, high 2, scales 0.5, blocks 0.0625.
"""

import torch

from ..jit import jit, tl
from .format import Format, Planes
from .packing import (
    as_bytes,
    as_float16,
    pack_nibbles,
    pack_upper_pairs,
    split_nibbles,
    unpack_nibbles,
    unpack_upper_pairs,
)
from .words import byte, field, load_each, load_words, upper_and_nibbles


def rearrange(raw: torch.Tensor) -> Planes:
    """The scales are kept as unsigned, 128 more, two to an int16: those of a sub-block."""
    blocks = raw.unflatten(-1, (-1, 210))
    nibbles = split_nibbles(blocks[..., :128].unflatten(-1, (2, 64))).flatten(1).unflatten(-1, (-1, 32))
    places = torch.arange(0, 8, 2, dtype=torch.uint8, device=raw.device).view(4, 1)
    upper = (blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> places & 3).flatten(1, 3)
    scales = (blocks[..., 192:208] ^ 128).flatten(1).view(torch.int16)
    return Planes(pack_nibbles(nibbles), pack_upper_pairs(upper), scales, as_float16(blocks[..., 208:]).flatten(1))


def dequantize(planes: Planes) -> torch.Tensor:
    assert planes.high is not None and planes.scales is not None and planes.blocks is not None
    codes = unpack_nibbles(planes.codes) | unpack_upper_pairs(planes.high) << 4
    scales = planes.blocks.float().unsqueeze(-1) * (as_bytes(planes.scales).float() - 128).unflatten(-1, (-1, 16))
    return (scales.flatten(1).unsqueeze(-1) * (codes.float() - 32).view(len(codes), -1, 16)).flatten(1)


@jit
def unpack(codes, high, row, s, mask, S: tl.constexpr, GROUP: tl.constexpr):
    """Even and odd positions as the four bytes of a word each, 6 bits in a byte."""
    words = load_words(codes, row, s, mask, 4 * S, 0, 4)
    low_lanes, high_lanes = tl.split(load_words(high, row, s, mask, 2 * S, 0, 2))
    lane = tl.arange(0, 4)[None, None, :]
    upper = tl.where(lane < 2, low_lanes[:, :, None], high_lanes[:, :, None])
    place = (lane & 1) * 4  # of the even position's pair in its byte; known for each register
    even = upper_and_nibbles(upper, words, 4 - place, 0)
    odd = upper_and_nibbles(upper, words >> 4, tl.maximum(2 - place, 0), tl.maximum(place - 2, 0))
    return even, odd


@jit
def code(first, second, P: tl.constexpr):
    if P % 2 == 0:
        return byte(first, P // 2, 63, 32)
    else:
        return byte(second, P // 2, 63, 32)


@jit
def scale(scales, blocks, row, s, mask, S: tl.constexpr):
    both = load_each(scales, row, s, mask, S).to(tl.int32)
    d = load_each(blocks, row, s >> 3, mask, S // 8).to(tl.float32)
    return d * field(both, 0, 255, 128), d * field(both, 8, 255, 128), d


FORMAT = Format("Q6_K", 256, 210, rearrange, dequantize, unpack, code, scale, halves=2, crowded=True)
