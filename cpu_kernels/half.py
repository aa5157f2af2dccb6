"""float16 <-> float32 on bit patterns: one instruction where the CPU has it, integer arithmetic where it has not.

Numbers too large for float16 become +-65504 instead of infinity: an infinite cached value would turn every later score
of the sequence into NaN.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu import HALF
from .jit import kernel


@intrinsic
def _extend(typing, bits):
    def emit(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


@intrinsic
def _truncate(typing, x):
    def emit(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), emit


@kernel
def half_to_float_by_bits(bits):
    magnitude = np.uint32(bits & np.uint16(0x7FFF))
    # The exponent moves to its float32 place still biased by 15, not 127; the product is exact, for subnormals too.
    rebiased = np.float32(np.uint32(magnitude << np.uint32(13)).view(np.float32) * np.float32(2.0**112))
    result = rebiased.view(np.uint32)
    if magnitude >= np.uint32(0x7C00):  # infinity or NaN
        result |= np.uint32(0x7F800000)
    return np.uint32(result | (np.uint32(bits & np.uint16(0x8000)) << np.uint32(16))).view(np.float32)


@kernel
def float_to_half_by_bits(x):
    bits = np.float32(x).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude > np.uint32(0x7F800000):
        half = np.uint32(0x7E00)  # NaN
    elif magnitude < np.uint32(0x38800000):  # below 2^-14: subnormal; the addition rounds at 2^-24, half to even
        shifted = np.float32(np.uint32(magnitude).view(np.float32) + np.float32(0.5))
        half = shifted.view(np.uint32) - np.uint32(0x3F000000)
    else:
        rounded = magnitude + np.uint32(0xFFF) + ((magnitude >> np.uint32(13)) & np.uint32(1))
        half = (rounded >> np.uint32(13)) - np.uint32(112 << 10)
    return np.uint16(half | ((bits >> np.uint32(16)) & np.uint32(0x8000)))


# Without the instructions LLVM would call __extendhfsf2 and __truncsfhf2, which a process need not have.
half_to_float = _extend if HALF else half_to_float_by_bits
_float_to_half = _truncate if HALF else float_to_half_by_bits


@kernel
def float_to_half(x):
    """Round to nearest even, saturating; NaN stays NaN."""
    limit = np.float32(65504.0)
    if x > limit:
        x = limit
    elif x < -limit:
        x = -limit
    return _float_to_half(x)
