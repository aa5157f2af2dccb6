"""Scales of Q4_K and Q5_K: 16 bytes a block of 256, read as one load by each of the block's eight threads.

Word 0 is d | dmin as in the file. The 6-bit scale and minimum of sub-block j, packed unevenly there, lie here in
nibble j of words 1 (low bits of the scale), 2 (low bits of the minimum) and 3 (the scale's upper two, the minimum's).
"""

import torch

from ..jit import jit, tl
from .packing import as_bytes, as_float16, as_words, split_nibbles
from .words import lanes, load_words, low_half


def rearrange_scales(header: torch.Tensor) -> torch.Tensor:
    """uint8 [R, B, 16] of the file -> int32 [R, B, 4]."""
    d, low, minimum, high = header.split(4, dim=-1)
    scale = torch.cat((low & 63, high & 15 | (low >> 6) << 4), dim=-1)
    minimum = torch.cat((minimum & 63, high >> 4 | (minimum >> 6) << 4), dim=-1)
    upper = scale >> 4 | (minimum >> 4) << 2
    fields = torch.stack((scale & 15, minimum & 15, upper), dim=-2)  # [R, B, 3, 8]
    packed = fields[..., 0::2] | fields[..., 1::2] << 4
    return as_words(torch.cat((d, packed.flatten(-2)), dim=-1))


def scales_and_minima(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 [R, B, 4] -> float32 [R, 8 B] each: d x scale, dmin x minimum."""
    header = as_bytes(words)
    d, dmin = as_float16(header[..., :4]).float().unsqueeze(-1).unbind(-2)
    nibbles = split_nibbles(header[..., 4:].unflatten(-1, (3, 4))).transpose(-1, -2).flatten(-2)  # [R, B, 3, 8]
    scale, minimum, upper = nibbles.unbind(-2)
    scale = d * (scale | (upper & 3) << 4).float()
    minimum = dmin * (minimum | (upper >> 2) << 4).float()
    return scale.flatten(-2), minimum.flatten(-2)


@jit
def scale(scales, blocks, row, s, mask, S: tl.constexpr):
    words = load_words(scales, row, s >> 3, mask, S // 2, 0, 4)
    both, low, minimum, upper = lanes(words)
    shift = (s & 7) * 4
    # The fields grow together below the exponent of 2**23: as floats 2**23 + field.
    upper = upper >> shift
    low = (((low >> shift) & 15) | 0x4B000000) + ((upper & 3) << 4)
    minimum = (((minimum >> shift) & 15) | 0x4B000000) + ((upper & 12) << 2)
    low = low_half(both) * (low.to(tl.float32, bitcast=True) - 8388608.0)
    minimum = low_half(both >> 16) * (minimum.to(tl.float32, bitcast=True) - 8388608.0)
    return low, low, minimum
