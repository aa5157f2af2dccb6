"""IQ3_S: 256 values as d f16 | 64 lower bytes of indices of 4 values | their ninth bits | 32 bytes of signs | scales.

8 bytes of ninth bits, 8 scales of 4 bits, for 32 values each.
"""

from ..jit import device, dot_kernel, unpack_kernel
from ..simd import load_f16, load_i64, load_u16, load_u32
from .block256 import dot_signed_rows, unpack_row
from .codebook import SIGNS, codebook, join, negate, odd_scales, pair

VALUES, BYTES = 256, 110
FLOAT = MINIMUM = False

GRID = codebook("IQ3_S")


@device
def _entry(indices, ninths):
    """8 codes of the lowest two indices."""
    return pair(GRID[indices & 255 | (ninths & 1) << 8], GRID[indices >> 8 & 255 | (ninths >> 1 & 1) << 8])


@device
def codes(block, half, group):
    at = 4 * half + group
    indices, ninths = load_i64(block + 2 + 8 * at), load_u16(block + 65 + at) >> 8
    entries = join(
        _entry(indices, ninths),
        _entry(indices >> 16, ninths >> 2),
        _entry(indices >> 32, ninths >> 4),
        _entry(indices >> 48, ninths >> 6),
    )
    signs = load_u32(block + 74 + 4 * at)
    masks = join(SIGNS[signs & 255], SIGNS[signs >> 8 & 255], SIGNS[signs >> 16 & 255], SIGNS[signs >> 24])
    return negate(entries, masks)


@device
def scales(block, half):
    nibbles = load_u16(block + 106 + 2 * half)
    nibbles = (nibbles | nibbles << 24) & 0x000000FF000000FF
    nibbles = (nibbles | nibbles << 12) & 0x000F000F000F000F
    return odd_scales(nibbles * 0x0101, load_f16(block))


@dot_kernel
def dot(weights, stride, rows, columns, x, y):
    dot_signed_rows(codes, scales, BYTES, weights, stride, rows, columns, x, y)


@unpack_kernel
def unpack(block, columns, panel):
    unpack_row(codes, 0, scales, BYTES, block, columns, panel)
