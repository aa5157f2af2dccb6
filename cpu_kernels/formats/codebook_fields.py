"""Bit fields of a block's words, for 16 rows at once."""

from collections.abc import Callable
from typing import Any

from ..lanes import I32, I64, Lanes, Memory, splat
from ..machine import LANES


class Words:
    """The words of a block of 16 rows. `block` numbers its 32s: an int, or an int64 SSA value.

    `place`: where a word of the file's block lies (Format.place).
    """

    def __init__(self, memory: Memory, place: Callable[[int], int]):
        self.builder, self._memory, self._place = memory.builder, memory, place

    def address(self) -> Any:
        return self.builder.add(self.builder.ptrtoint(self._memory.base, I64), I64(self._memory.offset))

    def word(self, first: int, step: int, block: Any) -> Lanes:
        """Word first + step·block of each row."""
        if isinstance(block, int):
            return (self._memory + 4 * LANES * self._place(first + step * block)).load(I32, LANES)
        start, following = self._place(first), self._place(first + step)  # and so on: every ORDER here is regular
        at = self._memory + 4 * LANES * start
        return at.moved(self.builder.mul(block, I64(4 * LANES * (following - start)))).load(I32, LANES)

    def item(self, first: int, bits: int, block: Any) -> Lanes:
        """Item number `block` of those of so many bits in the words from `first` on; later ones stand above it."""
        count = 32 // bits
        if isinstance(block, int):
            return self.word(first, 1, block // count) >> (bits * (block % count))
        word = self.word(first, 1, self.builder.udiv(block, I64(count)))
        shift = self.builder.trunc(self.builder.mul(self.builder.urem(block, I64(count)), I64(bits)), I32)
        return Lanes(self.builder, self.builder.lshr(word.value, _broadcast(self.builder, shift).value))


def _broadcast(builder, scalar) -> Lanes:
    lanes = splat(builder, 0, I32, LANES)
    return Lanes(builder, builder.insert_element(lanes.value, scalar, I32(0))).pick([0] * LANES)


def spread(bits: Lanes, width: int) -> Lanes:
    """The lowest four fields of `width` bits of every int32 lane, one in each byte."""
    mask = (1 << width) - 1
    fields = [bits & mask] + [(bits << ((8 - width) * i)) & (mask << (8 * i)) for i in (1, 2, 3)]
    return ((fields[0] | fields[1]) | (fields[2] | fields[3])).bytes()
