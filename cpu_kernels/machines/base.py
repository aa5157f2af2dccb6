"""Products of bytes as an instruction set does them, over 16 lanes: lane r of a sum belongs to weight row r.

A step adds, in every lane, four products of an unsigned weight byte and a signed activation byte. One class for each
kind of CPU; machine.py chooses.

begin(starts)                   accumulators of as many columns; a start is 16 int32 lanes to add to, or None for zeros
multiply(accumulators, w, x)    step `w` of each column: w[4r + i] · x[i] for i = 0..3 added to lane r; w: 64 bytes,
                                x: where each column's four bytes lie
totals(accumulators)            each column's sums as 16 int32 lanes
COLUMNS                         tile widths that its registers hold, ascending
WIDE                            columns of the widest tile made of fours (wide.py); 0: none
TILED                           the width that the machine emits by itself (`emit`), in tile registers; 0: none
SIGNED                          weight bytes may be signed (no offset of 128 for formats whose codes need all 8 bits)
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ..lanes import I8, I32, Lanes, Memory, join, splat

LANES = 16


class Machine:
    COLUMNS: tuple[int, ...] = (1, 2, 4)
    TILED = 0
    WIDE = 0
    SIGNED = False
    REGISTER = "=v"
    BYTES = 32  # of a register
    # LLVM may put off what finishes a block's sums until after the next block's products, whose accumulators then find
    # the registers taken. Tying the totals down costs nothing with VNNI on 16 registers (a fifth fewer instructions,
    # Q4_K x 4 columns) and on ARM; AVX2 gains 5 % x 2 and loses 2 % x 4, AVX-512 has registers enough.
    SETTLES = False

    def __init__(self, builder: Any, bits: int, signed: bool):
        """Weight bytes are below 2**bits, or, where `signed` and the machine SIGNED, any."""
        self.builder, self.bits, self.signed = builder, bits, signed

    def start(self, sums: Lanes) -> Any:
        """An accumulator that holds these 16 sums."""
        raise NotImplementedError

    def add(self, accumulator: Any, w: Lanes, x: Lanes) -> Any:
        """x: the four bytes in every lane."""
        raise NotImplementedError

    def total(self, accumulator: Any) -> Lanes:
        raise NotImplementedError

    def begin(self, starts: Sequence[Lanes | None]) -> list[Any]:
        zeros = splat(self.builder, 0, I32, LANES)
        return [self.start(start or zeros) for start in starts]

    def multiply(self, accumulators: Sequence[Any], w: Lanes, xs: Sequence[Memory]) -> list[Any]:
        added = [self.add(a, w, x.splat(I32, LANES).bytes()) for a, x in zip(accumulators, xs, strict=True)]
        return self.pin(added)

    def totals(self, accumulators: Sequence[Any]) -> list[Lanes]:
        return [self.total(accumulator) for accumulator in accumulators]

    def emit(self, group: Any, arguments: list[Any]) -> None:
        """The whole kernel of TILED columns. `group`: tile._Group; `arguments`: of tile.multiplier, without columns."""
        raise NotImplementedError

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
        raise NotImplementedError

    def pin(self, accumulators: Sequence[Any]) -> list[Any]:
        """Ties accumulators to this point by an empty instruction: LLVM moves nothing that makes or uses them across
        it, so an unrolled loop keeps its order and the accumulators stay in registers."""
        tied = self._tied([part for accumulator in accumulators for part in self.parts(accumulator)])
        pinned, at = [], 0
        for accumulator in accumulators:
            count = len(self.parts(accumulator))
            pinned.append(self.whole(tied[at : at + count], accumulator))
            at += count
        return pinned

    def settle(self, total: Lanes) -> Lanes:
        """Ties 16 finished float32 numbers to this point, where that pays."""
        if not self.SETTLES:
            return total
        parts = 64 // self.BYTES
        return join(self._tied([total.part(i, parts) for i in range(parts)]))

    def _tied(self, values: Sequence[Lanes]) -> list[Lanes]:
        if not values:
            return []
        types = [value.type for value in values]
        constraints = ",".join([self.REGISTER] * len(values) + [str(i) for i in range(len(values))])
        result = ir.LiteralStructType(types) if len(types) > 1 else types[0]
        empty = ir.InlineAsm(ir.FunctionType(result, types), "", constraints, side_effect=True)
        out = self.builder.call(empty, [value.value for value in values])
        one_by_one = [self.builder.extract_value(out, i) for i in range(len(values))] if len(values) > 1 else [out]
        return [Lanes(self.builder, value) for value in one_by_one]
