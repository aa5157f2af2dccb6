"""LLVM vectors as first-class values inside numba kernels.

A type is `F32x8`, `I8x32` ...; a function named after it loads, converts or makes one. Operators work lane by lane, a
scalar operand is broadcast, and `>>` on integers is the logical shift. Addresses are int64 and need no alignment.
Everything is generic LLVM IR that compiles for any CPU, except `dot_unsigned`, `dot_signed`, `lookup` and the loads of
16-bit floats: they use what the CPU's flags offer.
"""

import operator
import os
import platform
from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from .jit import device

_I32 = ir.IntType(32)
_ELEMENTS = {
    "i8": ir.IntType(8),
    "i16": ir.IntType(16),
    "i32": ir.IntType(32),
    "f32": ir.FloatType(),
}
_SCALARS = {"i8": types.int8, "i16": types.int16, "i32": types.int32, "f32": types.float32}


def _cpu_features() -> frozenset[str]:
    """What the compiler may emit: the host's flags, or those of the CPU that NUMBA_CPU_NAME asks to compile for."""
    name = os.environ.get("NUMBA_CPU_NAME", "")
    if not name and "NUMBA_CPU_FEATURES" not in os.environ:
        return frozenset(flag for flag, present in llvm.get_host_cpu_features().items() if present)
    declared = os.environ.get("NUMBA_CPU_FEATURES", "").split(",")
    avx2 = {"avx2", "fma", "f16c"}
    known = {"haswell": avx2, "znver3": avx2, "znver4": avx2 | {"avx512vnni", "avx512vl"}}
    return frozenset({flag[1:] for flag in declared if flag.startswith("+")} | known.get(name, set()))


FEATURES = _cpu_features()
AVX2 = "avx2" in FEATURES
VNNI = AVX2 and {"avx512vnni", "avx512vl"} <= FEATURES
NEON_DOT = "dotprod" in FEATURES
HALF = "f16c" in FEATURES or platform.machine() == "aarch64"


class Vector(types.Type):
    """`count` lanes of an element type named as in LLVM."""

    def __init__(self, element: str, count: int):
        self.element, self.count = element, count
        super().__init__(name=f"{element}x{count}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(_ELEMENTS[self.element], self.count)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


I8x4, I8x8, I8x16, I8x32 = (Vector("i8", n) for n in (4, 8, 16, 32))
I16x4, I16x8, I16x16 = (Vector("i16", n) for n in (4, 8, 16))
I32x8 = Vector("i32", 8)
F32x2, F32x4, F32x8 = (Vector("f32", n) for n in (2, 4, 8))


def _pointer(builder, address):
    return builder.inttoptr(address, ir.PointerType())


def _call(builder, name, result, *arguments):
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _shuffled(builder, a, b, lanes: Sequence[int]):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))


def _broadcast(builder, scalar, count: int):
    undefined = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    return _shuffled(builder, builder.insert_element(undefined, scalar, _I32(0)), undefined, [0] * count)


def _constant(vector: Vector, value):
    values = value if isinstance(value, Sequence) else [value] * vector.count
    return ir.Constant(vector.llvm, [ir.Constant(vector.llvm.element, v) for v in values])


def _as_element(context, builder, value, source, vector: Vector):
    """A scalar argument of an operator as one lane of `vector`."""
    return context.cast(builder, value, source, _SCALARS[vector.element])


# ---- makers of intrinsics -------------------------------------------------------------------------------------------


def _unary(argument, result, emit):
    @intrinsic
    def function(typing, x):
        return result(argument), lambda context, builder, signature, a: emit(builder, a[0])

    return function


def _loader(vector):
    def emit(builder, address):
        value = builder.load(_pointer(builder, address), typ=vector.llvm)
        value.align = 1
        return value

    return _unary(types.int64, vector, emit)


def _scalar_loader(scalar, element, convert=None):
    def emit(builder, address):
        value = builder.load(_pointer(builder, address), typ=element)
        value.align = 1
        return convert(builder, value) if convert else value

    return _unary(types.int64, scalar, emit)


def constant(vector: Vector, value) -> Any:
    """A function without arguments that returns this vector: `MASK = constant(I8x32, [...])`, `MASK()` in a kernel."""

    @intrinsic
    def function(typing):
        return vector(), lambda context, builder, signature, a: _constant(vector, value)

    return function


def shuffle(vector: Vector, lanes: Sequence[int]) -> Any:
    """A function that picks lanes of one vector."""
    result = Vector(vector.element, len(lanes))
    return _unary(vector, result, lambda builder, a: _shuffled(builder, a, ir.Constant(a.type, ir.Undefined), lanes))


def _joiner(half, whole):
    @intrinsic
    def function(typing, low, high):
        def codegen(context, builder, signature, a):
            return _shuffled(builder, a[0], a[1], range(whole.count))

        return whole(half, half), codegen

    return function


# ---- memory ---------------------------------------------------------------------------------------------------------

load_i8x4, load_i8x8, load_i8x16, load_i8x32 = _loader(I8x4), _loader(I8x8), _loader(I8x16), _loader(I8x32)
load_i16x8, load_i16x16, load_i32x8 = _loader(I16x8), _loader(I16x16), _loader(I32x8)
load_f32x2, load_f32x4, load_f32x8 = _loader(F32x2), _loader(F32x4), _loader(F32x8)
load_u8 = _scalar_loader(types.int64, ir.IntType(8), lambda b, v: b.zext(v, ir.IntType(64)))
load_i8 = _scalar_loader(types.int64, ir.IntType(8), lambda b, v: b.sext(v, ir.IntType(64)))
load_u16 = _scalar_loader(types.int64, ir.IntType(16), lambda b, v: b.zext(v, ir.IntType(64)))
load_u32 = _scalar_loader(types.int64, ir.IntType(32), lambda b, v: b.zext(v, ir.IntType(64)))
load_i64 = _scalar_loader(types.int64, ir.IntType(64))
load_i32 = _scalar_loader(types.int64, _I32, lambda b, v: b.sext(v, ir.IntType(64)))
load_f32 = _scalar_loader(types.float32, ir.FloatType())


def _as_lanes(of, value: int):
    return ir.Constant(of, [_I32(value)] * 8 if isinstance(of, ir.VectorType) else value)


def _extend_bf16(builder, bits, integer, real):
    """A bfloat16 is the upper half of a float32."""
    return builder.bitcast(builder.shl(builder.zext(bits, integer), _as_lanes(integer, 16)), real)


def _extend_f16(builder, bits, integer, real):
    """One instruction, or on CPUs without it: move the exponent to its place, then rebias it by an exact product."""
    if HALF:
        half = ir.VectorType(ir.HalfType(), 8) if isinstance(real, ir.VectorType) else ir.HalfType()
        return builder.fpext(builder.bitcast(bits, half), real)
    wide = builder.zext(bits, integer)
    magnitude = builder.shl(builder.and_(wide, _as_lanes(integer, 0x7FFF)), _as_lanes(integer, 13))
    rebias = builder.bitcast(_as_lanes(integer, (127 + 112) << 23), real)  # 2^112
    value = builder.bitcast(builder.fmul(builder.bitcast(magnitude, real), rebias), integer)
    infinite = builder.icmp_unsigned(">=", magnitude, _as_lanes(integer, 0x7C00 << 13))
    value = builder.select(infinite, builder.or_(value, _as_lanes(integer, 0x7F800000)), value)
    sign = builder.shl(builder.and_(wide, _as_lanes(integer, 0x8000)), _as_lanes(integer, 16))
    return builder.bitcast(builder.or_(value, sign), real)


def _half_loader(result, bits, integer, real, extend):
    """Loads 16-bit floats of either kind as float32."""

    def emit(builder, address):
        value = builder.load(_pointer(builder, address), typ=bits)
        value.align = 1
        return extend(builder, value, integer, real)

    return _unary(types.int64, result, emit)


_ONE, _EIGHT = (types.float32, ir.IntType(16), _I32, ir.FloatType()), (F32x8, I16x8.llvm, I32x8.llvm, F32x8.llvm)
load_f16, load_f16x8 = _half_loader(*_ONE, _extend_f16), _half_loader(*_EIGHT, _extend_f16)
load_bf16, load_bf16x8 = _half_loader(*_ONE, _extend_bf16), _half_loader(*_EIGHT, _extend_bf16)


@intrinsic
def store(typing, address, value):
    """Store a vector, or a float32."""

    def codegen(context, builder, signature, a):
        builder.store(a[1], _pointer(builder, a[0])).align = 1
        return context.get_dummy_value()

    if isinstance(value, Vector) or value == types.float32:
        return types.void(types.int64, value), codegen


@intrinsic
def prefetch(typing, address):
    def codegen(context, builder, signature, a):
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), _pointer(builder, a[0]), _I32(0), _I32(3), _I32(1))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# ---- lanes ----------------------------------------------------------------------------------------------------------


@intrinsic
def splat_f32x8(typing, value):
    def codegen(context, builder, signature, a):
        return _broadcast(builder, a[0], 8)

    return F32x8(types.float32), codegen


@intrinsic
def lane(typing, vector, index):
    """One lane as a scalar; a constant index costs one instruction."""
    if not isinstance(vector, Vector) or vector.element not in _SCALARS:
        return None

    def codegen(context, builder, signature, a):
        return builder.extract_element(a[0], builder.trunc(a[1], _I32))

    return _SCALARS[vector.element](vector, types.int64), codegen


@intrinsic
def spread(typing, vector, pair):
    """Lanes 2 pair and 2 pair + 1, each four times: the scales of two groups of 16 over the lanes of a `dot`.

    One shuffle where `pair` is constant.
    """

    def codegen(context, builder, signature, a):
        first = builder.shl(builder.trunc(a[1], _I32), _I32(1))
        halves = [
            _broadcast(builder, builder.extract_element(a[0], index), 4)
            for index in (first, builder.add(first, _I32(1)))
        ]
        return _shuffled(builder, *halves, range(8))

    return F32x8(F32x8, types.int64), codegen


join_i8x8, join_i8x16, join_f32x4 = _joiner(I8x8, I8x16), _joiner(I8x16, I8x32), _joiner(F32x4, F32x8)
low_i8x16, high_i8x16 = shuffle(I8x32, range(16)), shuffle(I8x32, range(16, 32))
low_i8x8, high_i8x8 = shuffle(I8x16, range(8)), shuffle(I8x16, range(8, 16))
low_f32x4, high_f32x4 = shuffle(F32x8, range(4)), shuffle(F32x8, range(4, 8))
spread_f32x2 = shuffle(F32x2, [0] * 4 + [1] * 4)  # two 16-groups' scales, each over the 4 lanes of its products
double_low, double_high = shuffle(F32x8, [0, 0, 1, 1, 2, 2, 3, 3]), shuffle(F32x8, [4, 4, 5, 5, 6, 6, 7, 7])


# ---- conversions ----------------------------------------------------------------------------------------------------


def _conversion(operation, source, target):
    return _unary(source, target, lambda builder, a: getattr(builder, operation)(a, target.llvm))


i32_from_i8 = _conversion("sext", I8x8, I32x8)
i32_from_u8 = _conversion("zext", I8x8, I32x8)
i32_from_u16 = _conversion("zext", I16x8, I32x8)
i8_from_i32 = _conversion("trunc", I32x8, I8x8)
f32_from_i32 = _conversion("sitofp", I32x8, F32x8)
f32_bits = _conversion("bitcast", I32x8, F32x8)
i32_bits = _conversion("bitcast", F32x8, I32x8)
f32_from_bits = _unary(types.int32, types.float32, lambda builder, a: builder.bitcast(a, ir.FloatType()))
i32_from_f32 = _conversion("fptosi", F32x8, I32x8)
round_even = _unary(F32x8, F32x8, lambda builder, a: _call(builder, "llvm.rint.v8f32", F32x8.llvm, a))


@intrinsic
def i8x8_from_i64(typing, bits):
    """The 8 bytes of an int64, lowest first."""
    return I8x8(types.int64), lambda context, builder, signature, a: builder.bitcast(a[0], I8x8.llvm)


@intrinsic
def mask_from_bits(typing, bits):
    """32 bits -> 32 bytes, 0xFF where the bit is set."""

    def codegen(context, builder, signature, a):
        flags = builder.bitcast(builder.trunc(a[0], _I32), ir.VectorType(ir.IntType(1), 32))
        return builder.sext(flags, I8x32.llvm)

    return I8x32(types.int64), codegen


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def _operator(python, integer: str, floating: str):
    """`vector op vector` and `vector op scalar`. Lowered in place: an @overload compiles a function for each use."""

    @infer_global(python)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            x, y = args
            if isinstance(x, Vector) and (x == y or isinstance(y, types.Number)):
                return signature(x, x, y)

    @lower_builtin(python, Vector, types.Any)
    def emit(context, builder, signature, a):
        x, y = signature.args
        right = a[1]
        if not isinstance(y, Vector):
            right = _broadcast(builder, _as_element(context, builder, right, y, x), x.count)
        return getattr(builder, floating if x.element[0] == "f" else integer)(a[0], right)


for _python, _integer, _floating in (
    (operator.add, "add", "fadd"),
    (operator.sub, "sub", "fsub"),
    (operator.mul, "mul", "fmul"),
    (operator.and_, "and_", ""),
    (operator.or_, "or_", ""),
    (operator.xor, "xor", ""),
    (operator.lshift, "shl", ""),
    (operator.rshift, "lshr", ""),
):
    _operator(_python, _integer, _floating)


@intrinsic
def fma(typing, x, y, z):
    """x * y + z with one rounding; y may be a float32."""
    if not isinstance(x, Vector) or x != z:
        return None

    def codegen(context, builder, signature, a):
        factor = a[1] if y == x else _broadcast(builder, _as_element(context, builder, a[1], y, x), x.count)
        return _call(builder, f"llvm.fma.v{x.count}f32", x.llvm, a[0], factor, a[2])

    return x(x, y, z), codegen


@intrinsic
def maximum(typing, x, y):
    """Of signed integers."""

    def codegen(context, builder, signature, a):
        return _call(builder, f"llvm.smax.v{x.count}{x.element}", x.llvm, a[0], a[1])

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
    result = _SCALARS[vector.element]
    return _unary(vector, result, lambda builder, a: _call(builder, name, vector.llvm.element, *start, a))


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
            low = _shuffled(builder, value, value, range(count))
            value = builder.fadd(low, _shuffled(builder, value, value, range(count, 2 * count)))
        return builder.extract_element(value, _I32(0))

    return types.float32(F32x8), codegen


# ---- what depends on the CPU ----------------------------------------------------------------------------------------


def _dot_generic(builder, w, x, extend: str):
    """Sums of 4 adjacent products through 16-bit multiplies and even/odd shuffles."""
    wide = ir.VectorType(_I32, 32)
    value = builder.mul(getattr(builder, extend)(w, wide), builder.sext(x, wide))
    for count in (32, 16):
        even = _shuffled(builder, value, value, range(0, count, 2))
        value = builder.add(even, _shuffled(builder, value, value, range(1, count, 2)))
    return value


def _dot_neon(builder, w, x):
    """Two `sdot` of 16 bytes: unsigned weights below 128 are the same as signed ones."""
    quarter = ir.VectorType(_I32, 4)
    halves = []
    for lanes in (range(16), range(16, 32)):
        a, b = _shuffled(builder, w, w, lanes), _shuffled(builder, x, x, lanes)
        halves.append(_call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", quarter, ir.Constant(quarter, None), a, b))
    return _shuffled(builder, *halves, range(8))


def _dot_x86(builder, w, x):
    if VNNI:
        return _call(builder, "llvm.x86.avx512.vpdpbusd.256", I32x8.llvm, ir.Constant(I32x8.llvm, None), w, x)
    pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", I16x16.llvm, w, x)
    return _call(builder, "llvm.x86.avx2.pmadd.wd", I32x8.llvm, pairs, _constant(I16x16, 1))


@intrinsic
def dot_unsigned(typing, w, x):
    """Lane i: the sum of w[j] * x[j] for j = 4i .. 4i+3; w in 0..127, x in -127..127."""

    def codegen(context, builder, signature, a):
        if AVX2:
            return _dot_x86(builder, *a)
        return _dot_neon(builder, *a) if NEON_DOT else _dot_generic(builder, *a, "zext")

    return I32x8(I8x32, I8x32), codegen


@intrinsic
def dot_signed(typing, w, x):
    """As `dot_unsigned`, w in -128..127. On x86 |w| * (x with w's sign)."""

    def codegen(context, builder, signature, a):
        w, x = a
        if AVX2:
            magnitude = _call(builder, "llvm.abs.v32i8", I8x32.llvm, w, ir.IntType(1)(0))
            return _dot_x86(builder, magnitude, _call(builder, "llvm.x86.avx2.psign.b", I8x32.llvm, x, w))
        return _dot_neon(builder, w, x) if NEON_DOT else _dot_generic(builder, w, x, "sext")

    return I32x8(I8x32, I8x32), codegen


@intrinsic
def lookup(typing, table, index):
    """table[index] for 32 indices of 0..15; the table's 16 bytes stand in the vector twice."""

    def codegen(context, builder, signature, a):
        table, index = a
        if AVX2:
            return _call(builder, "llvm.x86.avx2.pshuf.b", I8x32.llvm, table, index)
        if NEON_DOT:
            halves = [
                _call(
                    builder,
                    "llvm.aarch64.neon.tbl1.v16i8",
                    I8x16.llvm,
                    _shuffled(builder, table, table, range(16)),
                    _shuffled(builder, index, index, lanes),
                )
                for lanes in (range(16), range(16, 32))
            ]
            return _shuffled(builder, *halves, range(32))
        result = ir.Constant(I8x32.llvm, ir.Undefined)
        for i in range(32):
            at = builder.extract_element(index, _I32(i))
            result = builder.insert_element(result, builder.extract_element(table, at), _I32(i))
        return result

    return I8x32(I8x32, I8x32), codegen


# ---- functions of f32x8 ---------------------------------------------------------------------------------------------

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


@device
def exp(x):
    """e^x within 2 ulp for x in -87..88, clamped to that range; Cephes' reduction and polynomial."""
    x = fmin(fmax(x, splat_f32x8(np.float32(-87.0))), splat_f32x8(np.float32(88.0)))
    power = round_even(x * np.float32(1.44269504088896341))
    x = fma(power, np.float32(-0.693359375), x)
    x = fma(power, np.float32(2.12194440e-4), x)
    series = splat_f32x8(np.float32(_EXP[0]))
    for i in range(1, 6):
        series = fma(series, x, splat_f32x8(np.float32(_EXP[i])))
    series = fma(series, x * x, x) + np.float32(1.0)
    return series * f32_bits((i32_from_f32(power) + 127) << 23)
