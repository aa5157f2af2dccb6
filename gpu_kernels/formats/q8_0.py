"""Q8_0: 32 values as d f16 | 32 codes int8. 8.5 bits a weight: codes 8, scales 0.5."""

import torch

from ..jit import jit, tl
from .format import Format, Planes
from .one_scale import scale
from .packing import as_float16, pack_bytes, unpack_bytes
from .words import byte, load_words


def rearrange(raw: torch.Tensor) -> Planes:
    """The codes are kept as unsigned, 128 more."""
    blocks = raw.unflatten(-1, (-1, 34))
    return Planes(pack_bytes(blocks[..., 2:] ^ 128), scales=as_float16(blocks[..., :2]).flatten(1))


def dequantize(planes: Planes) -> torch.Tensor:
    assert planes.scales is not None
    return ((unpack_bytes(planes.codes).float() - 128) * planes.scales.float().unsqueeze(-1)).flatten(-2)


@jit
def unpack(codes, high, row, s, mask, S: tl.constexpr, GROUP: tl.constexpr):
    words = load_words(codes, row, s, mask, 8 * S, 4 * S * GROUP, 4)
    return words, words


@jit
def code(first, second, P: tl.constexpr):
    return byte(first, P, 255, 128)


FORMAT = Format("Q8_0", 32, 34, rearrange, dequantize, unpack, code, scale, groups=2)
