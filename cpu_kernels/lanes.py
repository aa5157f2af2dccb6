"""LLVM values of a kernel under construction, with Python's operators: what the emitters of tile.py and formats/ write.

A `Lanes` is one SSA value, mostly a vector. Operators work lane by lane on equal types; a Python number on the right
is a constant in every lane. `>>` on integers is the logical shift. Everything is generic LLVM IR; what depends on the
CPU is in machine.py, and in the conversion of halves.
"""

from collections.abc import Sequence
from functools import cache

from llvmlite import ir
from numba.core import cgutils

from .cpu import HALF

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


def vector(element, count: int) -> ir.VectorType:
    return ir.VectorType(element, count)


@cache
def constants(element, numbers: tuple) -> ir.Constant:
    """A constant vector; it keeps its text, which took a third of the time to emit a kernel."""
    return ir.Constant(vector(element, len(numbers)), [ir.Constant(element, number) for number in numbers])


class Lanes:
    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    @property
    def type(self):
        return self.value.type

    @property
    def count(self) -> int:
        return self.type.count

    @property
    def element(self):
        return self.type.element

    def _new(self, value) -> "Lanes":
        return Lanes(self.builder, value)

    def constant(self, number) -> "Lanes":
        return self._new(constants(self.element, (number,) * self.count))

    def _binary(self, other, integer: str, real: str = "") -> "Lanes":
        right = other if isinstance(other, Lanes) else self.constant(other)
        name = real if self.element == F32 else integer
        return self._new(getattr(self.builder, name)(self.value, right.value))

    def __add__(self, other):
        return self._binary(other, "add", "fadd")

    def __sub__(self, other):
        return self._binary(other, "sub", "fsub")

    def __mul__(self, other):
        return self._binary(other, "mul", "fmul")

    def __and__(self, other):
        return self._binary(other, "and_")

    def __or__(self, other):
        return self._binary(other, "or_")

    def __xor__(self, other):
        return self._binary(other, "xor")

    def __lshift__(self, other):
        return self._binary(other, "shl")

    def __rshift__(self, other):
        return self._binary(other, "lshr")

    def slide(self, bits: int) -> "Lanes":
        """Bytes shifted right (left where `bits` is negative) without a mask: neighbours' bits come in at the end, for
        a caller who masks them; where a CPU has no shift of bytes, `>>` masks a second time."""
        wide = self.bits(I16)
        shifted = wide >> bits if bits > 0 else wide << -bits
        return shifted.bits(I8) if bits else self

    def shift_signed(self, bits: int) -> "Lanes":
        return self._new(self.builder.ashr(self.value, self.constant(bits).value))

    def bits(self, element) -> "Lanes":
        """The same bits as lanes of another element type."""
        total = self.count * _width(self.element)
        return self._new(self.builder.bitcast(self.value, vector(element, total // _width(element))))

    def bytes(self) -> "Lanes":
        return self.bits(I8)

    def narrow(self, element) -> "Lanes":
        return self._new(self.builder.trunc(self.value, vector(element, self.count)))

    def widen(self, element, signed: bool = False) -> "Lanes":
        extend = self.builder.sext if signed else self.builder.zext
        return self._new(extend(self.value, vector(element, self.count)))

    def real(self) -> "Lanes":
        """Integers as float32."""
        return self._new(self.builder.sitofp(self.value, vector(F32, self.count)))

    def real_from_bf16(self) -> "Lanes":
        """int16 bit patterns: a bfloat16 is the upper half of a float32."""
        return (self.widen(I32) << 16).bits(F32)

    def real_from_f16(self) -> "Lanes":
        """int16 bit patterns. One instruction, or: shift the exponent to its place, rebias by an exact product."""
        if HALF:
            halves = self.bits(F16).value
            return self._new(self.builder.fpext(halves, vector(F32, self.count)))
        wide = self.widen(I32)
        magnitude = (wide & 0x7FFF) << 13
        value = (magnitude.bits(F32) * 2.0**112).bits(I32)
        infinite = self.builder.icmp_unsigned(">=", magnitude.value, magnitude.constant(0x7C00 << 13).value)
        value = self._new(self.builder.select(infinite, (value | 0x7F800000).value, value.value))
        return (value | ((wide & 0x8000) << 16)).bits(F32)

    def where(self, mask: Sequence[int], number: int) -> "Lanes":
        """`number` in the lanes that share a bit with `mask`, 0 in the others."""
        bits = self.builder.and_(self.value, constants(self.element, tuple(mask)))
        present = self.builder.icmp_unsigned("!=", bits, ir.Constant(self.type, None))
        return self._new(self.builder.select(present, self.constant(number).value, ir.Constant(self.type, None)))

    def part(self, index: int, parts: int) -> "Lanes":
        size = self.count // parts
        return self.pick(range(index * size, (index + 1) * size))

    def pick(self, lanes: Sequence[int], other: "Lanes | None" = None) -> "Lanes":
        right = other.value if other else ir.Constant(self.type, ir.Undefined)
        return self._new(self.builder.shuffle_vector(self.value, right, constants(I32, tuple(lanes))))

    def fma(self, factor: "Lanes", addend: "Lanes") -> "Lanes":
        """self x factor + addend, rounded once."""
        name = f"llvm.fma.v{self.count}f32"
        return self._new(call(self.builder, name, self.type, self.value, factor.value, addend.value))


def _width(element) -> int:
    return {F16: 16, F32: 32}.get(element) or element.width


def join(parts: Sequence[Lanes]) -> Lanes:
    """Vectors of equal type, one after another."""
    while len(parts) > 1:
        parts = [a.pick(range(2 * a.count), b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def transposed(four: Sequence[Lanes]) -> list[Lanes]:
    """Four vectors of quarters of 4 lanes: lane j of quarter q of vector i becomes lane i of quarter q of vector j.

    Shuffles within 128 bits, cheap everywhere and cheap to compile.
    """
    count = four[0].count
    starts = range(0, count, 4)
    pairs = []  # of vectors i, i + 1: lanes 0, 1, then lanes 2, 3
    for a, b in ((four[0], four[1]), (four[2], four[3])):
        for j in (0, 2):
            pairs.append(a.pick([v for s in starts for i in (s + j, s + j + 1) for v in (i, i + count)], b))
    result = []
    for a, b in ((pairs[0], pairs[2]), (pairs[1], pairs[3])):
        for j in (0, 2):
            result.append(a.pick([v for s in starts for v in (s + j, s + j + 1, s + j + count, s + j + 1 + count)], b))
    return result


def call(builder, name: str, result, *arguments):
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


class Memory:
    """An address (int64 SSA value) and a constant offset from it."""

    def __init__(self, builder, base, offset: int = 0):
        self.builder, self.offset = builder, offset
        self.base = builder.inttoptr(base, ir.PointerType()) if base.type == I64 else base

    def __add__(self, offset: int) -> "Memory":
        return Memory(self.builder, self.base, self.offset + offset)

    def moved(self, by) -> "Memory":
        """By an int64 SSA value."""
        return Memory(self.builder, self.builder.gep(self.base, [by], source_etype=I8), self.offset)

    def _pointer(self):
        return self.builder.gep(self.base, [I64(self.offset)], source_etype=I8)

    def load(self, element, count: int = 1) -> Lanes:
        value = self.builder.load(self._pointer(), typ=vector(element, count) if count > 1 else element)
        value.align = 1
        return Lanes(self.builder, value)

    def prefetch(self) -> None:
        """Ask for the cache line, to read it soon."""
        void, pointer = ir.VoidType(), self._pointer()
        call(self.builder, "llvm.prefetch.p0", void, pointer, I32(0), I32(3), I32(1))

    def splat(self, element, count: int) -> Lanes:
        """One value in every lane."""
        scalar = self.load(element).value
        undefined = ir.Constant(vector(element, count), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, I32(0))
        return Lanes(self.builder, first).pick([0] * count)

    def store(self, lanes: Lanes) -> None:
        self.builder.store(lanes.value, self._pointer()).align = 1


def splat(builder, number, element, count: int) -> Lanes:
    return Lanes(builder, constants(element, (number,) * count))


def space(builder, count: int) -> Memory:
    """Bytes on the stack, at the start of a cache line."""
    place = cgutils.alloca_once(builder, vector(I8, 64), size=I64(count // 64))
    place.align = 64
    return Memory(builder, builder.ptrtoint(place, I64))
