"""Products of bytes as each instruction set does them, over 16 lanes: lane r of a sum belongs to weight row r.

A step adds, in every lane, four products of an unsigned weight byte and a signed activation byte. One class for each
kind of CPU; `MACHINE` is the one for the CPU that the compiler aims at.

zero()              an empty accumulator
add(acc, w, x)      acc with w[4r + i] · x[4r + i] for i = 0..3 added to lane r; w, x are 64 bytes
total(acc)          the accumulator as 16 int32 lanes
COLUMNS             tile widths that its registers hold, ascending
SIGNED              weight bytes are signed by nature (no offset of 128 needed for formats with all 8 bits)
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from .cpu import AVX2, NEON_DOT, VNNI, VNNI512
from .lanes import I8, I16, I32, Lanes, call, join, splat, vector

LANES = 16


class _Machine:
    COLUMNS: tuple[int, ...] = (1, 2, 4)
    SIGNED = False
    REGISTER = "=v"
    BYTES = 32  # of a register

    def __init__(self, builder: Any, bits: int, signed: bool):
        """Weight bytes are below 2**bits, or, where `signed` and the machine SIGNED, any."""
        self.builder, self.bits, self.signed = builder, bits, signed

    def parts(self, accumulator: Any) -> list[Lanes]:
        """Its registers, in order."""
        return list(accumulator)

    def whole(self, parts: Sequence[Lanes], like: Any) -> Any:
        return list(parts)

    @classmethod
    def lookup(cls, table: Sequence[int], index: Lanes) -> Lanes:
        """table[index] for 64 indices of 0..15."""
        parts = []
        for i in range(64 // cls.BYTES):
            part = index.part(i, 64 // cls.BYTES)
            entries = ir.Constant(part.type, [ir.Constant(I8, v) for v in list(table) * (cls.BYTES // 16)])
            parts.append(cls._lookup(part, entries))
        return join(parts)

    @classmethod
    def _lookup(cls, index: Lanes, entries: Any) -> Lanes:
        names = {64: "llvm.x86.avx512.pshuf.b.512", 32: "llvm.x86.avx2.pshuf.b"}
        return Lanes(index.builder, call(index.builder, names[cls.BYTES], index.type, entries, index.value))

    def pin(self, accumulators: Sequence[Any]) -> list[Any]:
        """Ties accumulators to this point by an empty instruction: LLVM moves nothing that makes or uses them across
        it, so an unrolled loop keeps its order and the accumulators stay in registers."""
        flat = [part for accumulator in accumulators for part in self.parts(accumulator)]
        if not flat:
            return list(accumulators)
        types = [value.type for value in flat]
        tied = ",".join([self.REGISTER] * len(flat) + [str(i) for i in range(len(flat))])
        result = ir.LiteralStructType(types) if len(types) > 1 else types[0]
        empty = ir.InlineAsm(ir.FunctionType(result, types), "", tied, side_effect=True)
        out = self.builder.call(empty, [value.value for value in flat])
        values = [self.builder.extract_value(out, i) for i in range(len(flat))] if len(flat) > 1 else [out]
        pinned, at = [], 0
        for accumulator in accumulators:
            count = len(self.parts(accumulator))
            pinned.append(self.whole([Lanes(self.builder, v) for v in values[at : at + count]], accumulator))
            at += count
        return pinned


class Vnni512(_Machine):
    """AVX-512 VNNI: 64 products an instruction, and 32 registers: eight columns."""

    COLUMNS = (1, 2, 4, 8)
    BYTES = 64

    def zero(self):
        return [splat(self.builder, 0, I32, LANES)]

    def add(self, accumulator, w: Lanes, x: Lanes):
        value = call(
            self.builder, "llvm.x86.avx512.vpdpbusd.512", vector(I32, 16), accumulator[0].value, w.value, x.value
        )
        return [Lanes(self.builder, value)]

    def total(self, accumulator) -> Lanes:
        return accumulator[0]


class Vnni256(_Machine):
    """AVX-VNNI, or AVX-512 VNNI where 512-bit registers are not wanted: two registers for 16 rows."""

    def zero(self):
        return [splat(self.builder, 0, I32, 8)] * 2

    def add(self, accumulator, w: Lanes, x: Lanes):
        return [
            Lanes(
                self.builder,
                call(
                    self.builder,
                    "llvm.x86.avx512.vpdpbusd.256",
                    vector(I32, 8),
                    part.value,
                    w.part(i, 2).value,
                    x.part(i, 2).value,
                ),
            )
            for i, part in enumerate(accumulator)
        ]

    def total(self, accumulator) -> Lanes:
        return join(accumulator)


class Avx2(_Machine):
    """`vpmaddubsw` adds pairs of products in 16 bits; as many of them as cannot overflow are added before `vpmaddwd`.

    An accumulator: the int16 pairs of both halves of the rows, their int32 sums so far, and the steps in the pairs;
    the pairs stay in registers, the sums may lie in memory. Codes with all 8 bits are multiplied as |w| · (x with w's
    sign).
    """

    SIGNED = True

    def __init__(self, builder, bits, signed):
        super().__init__(builder, bits, signed)
        self.limit = max(1, 32767 // (2 * 127 * (128 if signed else 2**bits - 1)))

    def zero(self):
        return [], [], 0

    def parts(self, accumulator):
        pairs, sums, _ = accumulator
        return pairs or sums

    def whole(self, parts, like):
        pairs, sums, steps = like
        return (list(parts), sums, steps) if pairs else (pairs, list(parts), steps)

    def add(self, accumulator, w: Lanes, x: Lanes):
        pairs, sums, steps = accumulator
        products = [self._products(w.part(i, 2), x.part(i, 2)) for i in range(2)]
        pairs = [a + b for a, b in zip(pairs, products, strict=True)] if pairs else products
        if steps + 1 < self.limit:
            return pairs, sums, steps + 1
        return [], self._widened(pairs, sums), 0

    def total(self, accumulator) -> Lanes:
        pairs, sums, _ = accumulator
        return join(self._widened(pairs, sums) if pairs else sums)

    def _products(self, w: Lanes, x: Lanes) -> Lanes:
        if self.signed:
            x = self._call("llvm.x86.avx2.psign.b", I8, 32, x, w)
            w = Lanes(self.builder, call(self.builder, "llvm.abs.v32i8", w.type, w.value, ir.IntType(1)(0)))
        return self._call("llvm.x86.avx2.pmadd.ub.sw", I16, 16, w, x)

    def _widened(self, pairs, sums):
        ones = splat(self.builder, 1, I16, 16)
        wide = [self._call("llvm.x86.avx2.pmadd.wd", I32, 8, pair, ones) for pair in pairs]
        return [a + b for a, b in zip(sums, wide, strict=True)] if sums else wide

    def _call(self, name: str, element, count: int, *arguments: Lanes) -> Lanes:
        return Lanes(self.builder, call(self.builder, name, vector(element, count), *(a.value for a in arguments)))


class NeonDot(_Machine):
    """`sdot` of 16 bytes; weights below 128 are the same signed or not."""

    SIGNED = True
    REGISTER = "=w"
    BYTES = 16

    @classmethod
    def _lookup(cls, index, entries):
        return Lanes(
            index.builder, call(index.builder, "llvm.aarch64.neon.tbl1.v16i8", index.type, entries, index.value)
        )

    def zero(self):
        return [splat(self.builder, 0, I32, 4)] * 4

    def add(self, accumulator, w: Lanes, x: Lanes):
        name, quarter = "llvm.aarch64.neon.sdot.v4i32.v16i8", vector(I32, 4)
        return [
            Lanes(self.builder, call(self.builder, name, quarter, part.value, w.part(i, 4).value, x.part(i, 4).value))
            for i, part in enumerate(accumulator)
        ]

    def total(self, accumulator) -> Lanes:
        return join(accumulator)


class Generic(_Machine):
    """Any CPU: 16-bit products and shuffles, as LLVM finds best."""

    SIGNED = True
    COLUMNS = (1, 4)

    @classmethod
    def lookup(cls, table, index):
        builder = index.builder
        result, entries = ir.Constant(index.type, ir.Undefined), ir.Constant(vector(I8, 16), list(table))
        for i in range(index.count):
            at = builder.extract_element(index.value, I32(i))
            result = builder.insert_element(result, builder.extract_element(entries, at), I32(i))
        return Lanes(builder, result)

    def zero(self):
        return [splat(self.builder, 0, I32, LANES)]

    def pin(self, accumulators):
        return list(accumulators)

    def add(self, accumulator, w: Lanes, x: Lanes):
        products = w.widen(I32, signed=self.signed) * x.widen(I32, signed=True)
        for count in (64, 32):
            products = products.pick(range(0, count, 2)) + products.pick(range(1, count, 2))
        return [accumulator[0] + products]

    def total(self, accumulator) -> Lanes:
        return accumulator[0]


MACHINE: type[Any] = Vnni512 if VNNI512 else Vnni256 if VNNI else Avx2 if AVX2 else NeonDot if NEON_DOT else Generic
