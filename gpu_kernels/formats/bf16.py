"""BF16: 2 bytes a weight, the upper half of a float32. A word holds two positions of a lane, the even one low."""

import torch

from ..jit import jit, tl
from .f16 import unpack
from .format import Format, Planes
from .one_scale import scale
from .packing import pack_values, unpack_values


def rearrange(raw: torch.Tensor) -> Planes:
    return Planes(pack_values(raw, 2))


def dequantize(planes: Planes) -> torch.Tensor:
    return (unpack_values(planes.codes, 2).view(torch.int16).int() << 16).view(torch.float32)


@jit
def code(first, second, P: tl.constexpr):
    """By integers: the interpreter's own bfloat16 is wrong."""
    if P == 0:
        return (first << 16).to(tl.float32, bitcast=True)
    else:
        return (first & -65536).to(tl.float32, bitcast=True)


FORMAT = Format("BF16", 1, 2, rearrange, dequantize, unpack, code, scale, groups=4, scaled=False)
