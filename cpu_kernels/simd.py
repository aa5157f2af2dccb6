"""Functions on LLVM vectors for numba kernels.

A function is named after the type it loads, converts to or makes. Operators (+ - * & <<) work lane by lane, and a
scalar operand is broadcast. Addresses are int64 and need no alignment. All is generic LLVM IR that compiles for any
CPU; what depends on the CPU is in machine.py.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit import device
from .vector import (
    SCALARS,
    F32x4,
    F32x8,
    I8x8,
    I8x16,
    I32x8,
    Vector,
    as_element,
    broadcast,
    call,
    pointer,
    shuffle,
    shuffled,
    unary,
)

_I32 = ir.IntType(32)


def _loader(vector):
    def emit(builder, address):
        value = builder.load(pointer(builder, address), typ=vector.llvm)
        value.align = 1
        return value

    return unary(types.int64, vector, emit)


def _scalar_loader(scalar, element, convert=None):
    def emit(builder, address):
        value = builder.load(pointer(builder, address), typ=element)
        value.align = 1
        return convert(builder, value) if convert else value

    return unary(types.int64, scalar, emit)


def _joiner(half, whole):
    @intrinsic
    def function(typing, low, high):
        def codegen(context, builder, signature, a):
            return shuffled(builder, a[0], a[1], range(whole.count))

        return whole(half, half), codegen

    return function


# ---- memory ---------------------------------------------------------------------------------------------------------

load_i8x8 = _loader(I8x8)
load_f32x4, load_f32x8 = _loader(F32x4), _loader(F32x8)
load_u16 = _scalar_loader(types.int64, ir.IntType(16), lambda b, v: b.zext(v, ir.IntType(64)))
load_i32 = _scalar_loader(types.int64, _I32, lambda b, v: b.sext(v, ir.IntType(64)))
load_f32 = _scalar_loader(types.float32, ir.FloatType())


@intrinsic
def store(typing, address, value):
    """Store a vector, a float32 or an int32."""

    def codegen(context, builder, signature, a):
        builder.store(a[1], pointer(builder, a[0])).align = 1
        return context.get_dummy_value()

    if isinstance(value, Vector) or value in (types.float32, types.int32):
        return types.void(types.int64, value), codegen


# ---- lanes ----------------------------------------------------------------------------------------------------------


@intrinsic
def splat_f32x8(typing, value):
    def codegen(context, builder, signature, a):
        return broadcast(builder, a[0], 8)

    return F32x8(types.float32), codegen


@intrinsic
def lane(typing, vector, index):
    """One lane as a scalar; a constant index costs one instruction."""
    if not isinstance(vector, Vector) or vector.element not in SCALARS:
        return None

    def codegen(context, builder, signature, a):
        return builder.extract_element(a[0], builder.trunc(a[1], _I32))

    return SCALARS[vector.element](vector, types.int64), codegen


join_i8x8 = _joiner(I8x8, I8x16)


# ---- conversions ----------------------------------------------------------------------------------------------------


def _conversion(operation, source, target):
    return unary(source, target, lambda builder, a: getattr(builder, operation)(a, target.llvm))


i32_from_i8 = _conversion("sext", I8x8, I32x8)
i8_from_i32 = _conversion("trunc", I32x8, I8x8)
f32_from_i32 = _conversion("sitofp", I32x8, F32x8)
f32_bits = _conversion("bitcast", I32x8, F32x8)
i32_bits = _conversion("bitcast", F32x8, I32x8)
f32_from_bits = unary(types.int32, types.float32, lambda builder, a: builder.bitcast(a, ir.FloatType()))
i32_from_f32 = _conversion("fptosi", F32x8, I32x8)
round_even = unary(F32x8, F32x8, lambda builder, a: call(builder, "llvm.rint.v8f32", F32x8.llvm, a))


# ---- arithmetic-----------------------------------------------------------------------------------------------------


@intrinsic
def fma(typing, x, y, z):
    """x * y + z with one rounding; y may be a float32."""
    if not isinstance(x, Vector) or x != z:
        return None

    def codegen(context, builder, signature, a):
        factor = a[1] if y == x else broadcast(builder, as_element(context, builder, a[1], y, x), x.count)
        return call(builder, f"llvm.fma.v{x.count}f32", x.llvm, a[0], factor, a[2])

    return x(x, y, z), codegen


@intrinsic
def maximum(typing, x, y):
    """Of signed integers."""

    def codegen(context, builder, signature, a):
        return call(builder, f"llvm.smax.v{x.count}{x.element}", x.llvm, a[0], a[1])

    return x(x, x), codegen


@intrinsic
def fdiv(typing, x, y):
    return F32x8(F32x8, F32x8), lambda context, builder, signature, a: builder.fdiv(a[0], a[1])


def _select(comparison):
    def emit(builder, x, y):
        return builder.select(builder.fcmp_ordered(comparison, x, y), x, y)

    @intrinsic
    def function(typing, x, y):
        return F32x8(F32x8, F32x8), lambda context, builder, signature, a: emit(builder, a[0], a[1])

    return function


fmin, fmax = _select("<"), _select(">")  # y where either is NaN


def _reduction(vector, name, *start):
    result = SCALARS[vector.element]
    return unary(vector, result, lambda builder, a: call(builder, name, vector.llvm.element, *start, a))


reduce_max = _reduction(I32x8, "llvm.vector.reduce.smax.v8i32")
reduce_add_i32x4 = _reduction(Vector("i32", 4), "llvm.vector.reduce.add.v4i32")
low_i32x4, high_i32x4 = shuffle(I32x8, range(4)), shuffle(I32x8, range(4, 8))


@intrinsic
def reduce_add(typing, x):
    """The sum of 8 lanes, always in the same order: halves onto halves."""

    def codegen(context, builder, signature, a):
        value, count = a[0], 8
        while count > 1:
            count //= 2
            low = shuffled(builder, value, value, range(count))
            value = builder.fadd(low, shuffled(builder, value, value, range(count, 2 * count)))
        return builder.extract_element(value, _I32(0))

    return types.float32(F32x8), codegen


# ---- functions of f32x8 ---------------------------------------------------------------------------------------------

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


@device
def exp(x):
    """e^x within 2 ulp for x in -87..88, clamped to that range, NaN of NaN; Cephes' reduction and polynomial."""
    x = fmin(splat_f32x8(np.float32(88.0)), fmax(splat_f32x8(np.float32(-87.0)), x))
    power = round_even(x * np.float32(1.44269504088896341))
    x = fma(power, np.float32(-0.693359375), x)
    x = fma(power, np.float32(2.12194440e-4), x)
    series = splat_f32x8(np.float32(_EXP[0]))
    for i in range(1, 6):
        series = fma(series, x, splat_f32x8(np.float32(_EXP[i])))
    series = fma(series, x * x, x) + np.float32(1.0)
    return series * f32_bits((i32_from_f32(power) + 127) << 23)
