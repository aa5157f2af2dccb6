"""x86-64 from AVX2 on."""

from typing import Any

from llvmlite import ir

from ..lanes import I8, I16, I32, Lanes, call, join, splat, vector
from .base import Machine


class _X86(Machine):
    @classmethod
    def _lookup(cls, index: Lanes, entries: Any) -> Lanes:
        names = {64: "llvm.x86.avx512.pshuf.b.512", 32: "llvm.x86.avx2.pshuf.b"}
        return Lanes(index.builder, call(index.builder, names[cls.BYTES], index.type, entries, index.value))


class Vnni512(_X86):
    """AVX-512 VNNI: 64 products an instruction, and 32 registers: eight columns."""

    COLUMNS: tuple[int, ...] = (1, 2, 4, 8)
    BYTES = 64

    def start(self, sums):
        return [sums]

    def add(self, accumulator, w: Lanes, x: Lanes):
        value = call(
            self.builder, "llvm.x86.avx512.vpdpbusd.512", vector(I32, 16), accumulator[0].value, w.value, x.value
        )
        return [Lanes(self.builder, value)]

    def total(self, accumulator) -> Lanes:
        return accumulator[0]


class Vnni256(_X86):
    """AVX-VNNI, or AVX-512 VNNI where 512-bit registers are not wanted: two registers for 16 rows."""

    SETTLES = True
    WIDE = 16

    def start(self, sums):
        return [sums.part(i, 2) for i in range(2)]

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


class Avx2(_X86):
    """`vpmaddubsw` adds pairs of products in 16 bits; as many of them as cannot overflow are added before `vpmaddwd`.

    An accumulator: the int16 pairs of both halves of the rows, their int32 sums so far, and the steps in the pairs;
    the pairs stay in registers, the sums may lie in memory. Codes with all 8 bits are multiplied as |w| · (x with w's
    sign).
    """

    SIGNED = True
    WIDE = 16

    def __init__(self, builder, bits, signed):
        super().__init__(builder, bits, signed)
        self.limit = max(1, 32767 // (2 * 127 * (128 if signed else 2**bits - 1)))

    def begin(self, starts):
        return [([], [start.part(i, 2) for i in range(2)] if start else [], 0) for start in starts]

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
