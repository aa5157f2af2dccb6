"""Integer products of 32 bytes and table lookup, with the instructions that the CPU has."""

from llvmlite import ir
from numba.extending import intrinsic

from .cpu import AVX2, NEON_DOT, VNNI
from .vector import I8x16, I8x32, I16x16, I32x8, call, shuffled, vector_constant

_I32 = ir.IntType(32)


def _dot_generic(builder, w, x, extend: str):
    """Sums of 4 adjacent products through 16-bit multiplies and even/odd shuffles."""
    wide = ir.VectorType(_I32, 32)
    value = builder.mul(getattr(builder, extend)(w, wide), builder.sext(x, wide))
    for count in (32, 16):
        even = shuffled(builder, value, value, range(0, count, 2))
        value = builder.add(even, shuffled(builder, value, value, range(1, count, 2)))
    return value


def _dot_neon(builder, w, x):
    """Two `sdot` of 16 bytes: unsigned weights below 128 are the same as signed ones."""
    quarter = ir.VectorType(_I32, 4)
    halves = []
    for lanes in (range(16), range(16, 32)):
        a, b = shuffled(builder, w, w, lanes), shuffled(builder, x, x, lanes)
        halves.append(call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", quarter, ir.Constant(quarter, None), a, b))
    return shuffled(builder, halves[0], halves[1], range(8))


def _dot_x86(builder, w, x):
    if VNNI:
        return call(builder, "llvm.x86.avx512.vpdpbusd.256", I32x8.llvm, ir.Constant(I32x8.llvm, None), w, x)
    pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", I16x16.llvm, w, x)
    return call(builder, "llvm.x86.avx2.pmadd.wd", I32x8.llvm, pairs, vector_constant(I16x16, 1))


def emit_dot(builder, w, x, signed: bool):
    """Lane i: the sum of w[j] * x[j] for j = 4i .. 4i+3. On x86, signed is |w| * (x with w's sign)."""
    if AVX2:
        if signed:
            x = call(builder, "llvm.x86.avx2.psign.b", I8x32.llvm, x, w)
            w = call(builder, "llvm.abs.v32i8", I8x32.llvm, w, ir.IntType(1)(0))
        return _dot_x86(builder, w, x)
    if NEON_DOT:
        return _dot_neon(builder, w, x)
    return _dot_generic(builder, w, x, "sext" if signed else "zext")


def emit_lookup(builder, table, index):
    if AVX2:
        return call(builder, "llvm.x86.avx2.pshuf.b", I8x32.llvm, table, index)
    if NEON_DOT:
        low = shuffled(builder, table, table, range(16))
        halves = [shuffled(builder, index, index, lanes) for lanes in (range(16), range(16, 32))]
        halves = [call(builder, "llvm.aarch64.neon.tbl1.v16i8", I8x16.llvm, low, half) for half in halves]
        return shuffled(builder, halves[0], halves[1], range(32))
    result = ir.Constant(I8x32.llvm, ir.Undefined)
    for i in range(32):
        at = builder.extract_element(index, _I32(i))
        result = builder.insert_element(result, builder.extract_element(table, at), _I32(i))
    return result


@intrinsic
def dot_unsigned(typing, w, x):
    """Lane i: the sum of w[j] * x[j] for j = 4i .. 4i+3; w in 0..127, x in -127..127."""
    return I32x8(I8x32, I8x32), lambda context, builder, signature, a: emit_dot(builder, a[0], a[1], False)


@intrinsic
def dot_signed(typing, w, x):
    """As `dot_unsigned`, w in -128..127."""
    return I32x8(I8x32, I8x32), lambda context, builder, signature, a: emit_dot(builder, a[0], a[1], True)


@intrinsic
def lookup(typing, table, index):
    """table[index] for 32 indices of 0..15; the table's 16 bytes stand in the vector twice."""
    return I8x32(I8x32, I8x32), lambda context, builder, signature, a: emit_lookup(builder, a[0], a[1])
