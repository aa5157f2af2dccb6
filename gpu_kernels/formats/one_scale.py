"""Scales of Q8_0, Q5_0 and Q4_0: one float16 a sub-block, and no minimum."""

from ..jit import jit, tl
from .words import load_each


@jit
def scale(scales, blocks, row, s, mask, S: tl.constexpr):
    d = load_each(scales, row, s, mask, S).to(tl.float32)
    return d, d, d
