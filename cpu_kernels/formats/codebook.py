"""Codebooks of the IQ1, IQ2 and IQ3 formats, from the gguf package, and what their blocks have in common.

A codebook's entry is 8 (IQ3: 4) codes, the first in the lowest byte; a file holds indices into it. Entries of IQ2 and
IQ3 are magnitudes, whose signs the file holds as bits: all 8 of them, or 7 where the eighth makes their number even.
"""

import gguf
import numpy as np

from ..jit import device
from ..simd import f32_from_bits, f32_from_i32, i8x8_from_i64, i32_from_i8, join_i8x8, join_i8x16


def codebook(type: str, factor: int = 1) -> np.ndarray:
    """int64 [entries] of 8 codes, or int32 [entries] of 4, each `factor` times the definition's."""
    quant = getattr(gguf.quants, type)
    quant.init_grid()
    codes = np.ascontiguousarray(quant.grid.reshape(quant.grid_shape) * factor, np.int8)
    return codes.view(np.int64 if codes.shape[1] == 8 else np.int32).reshape(-1)


def _sign_masks(bits: np.ndarray) -> np.ndarray:
    """Bytes -> int64: byte i is 0xFF where bit i is set."""
    flags = np.unpackbits(bits.astype(np.uint8)[:, None], axis=1, bitorder="little")
    return (flags * np.uint8(255)).view(np.int64).reshape(-1)


SIGNS = _sign_masks(np.arange(256))
EVEN_SIGNS = _sign_masks(np.frombuffer(gguf.quants.IQ2_XXS.ksigns, np.uint8))  # of 7 bits


@device
def join(a, b, c, d):
    """32 codes of four int64."""
    return join_i8x16(join_i8x8(i8x8_from_i64(a), i8x8_from_i64(b)), join_i8x8(i8x8_from_i64(c), i8x8_from_i64(d)))


@device
def pair(low, high):
    """8 codes of two int32."""
    return np.int64(low) & 0xFFFFFFFF | np.int64(high) << 32


@device
def negate(codes, mask):
    """-codes where the mask's byte is 0xFF."""
    return (codes ^ mask) - mask


@device
def odd_scales(bytes, unit):
    """(2 s + 1) x unit for 8 bytes s, as f32x8."""
    return f32_from_i32(i32_from_i8(i8x8_from_i64(bytes)) * 2 + 1) * unit


@device
def bytes_of_nibbles(nibbles):
    """32 bits -> 8 bytes, the lowest nibble in the lowest byte: the distance halves at each step."""
    nibbles = (nibbles | nibbles << 16) & 0x0000FFFF0000FFFF
    nibbles = (nibbles | nibbles << 8) & 0x00FF00FF00FF00FF
    return (nibbles | nibbles << 4) & 0x0F0F0F0F0F0F0F0F


@device
def f16_from_bits(bits):
    """A half-precision number of 16 bits that do not stand together in memory."""
    sign, magnitude = (bits & 0x8000) << 16, (bits & 0x7FFF) << 13
    if magnitude >= 0x7C00 << 13:
        return f32_from_bits(np.int32(sign | magnitude | 0x7F800000))
    return f32_from_bits(np.int32(sign | magnitude)) * np.float32(2.0**112)
