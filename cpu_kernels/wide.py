"""Tiles of 8, 12 or 16 columns on machines whose registers hold four: a block is decoded once.

Codes as the machine multiplies them, scales and negative minima go to a buffer that stays in the first-level cache;
then four columns after four are multiplied from there, by a loop over the 32s of the block. The columns' totals wait on
the stack. A column adds the same numbers in the same order as in the other widths (tile.py).

For 32 values x 16 rows x 4 columns AVX2 runs 232 instructions of this loop for Q4_K (four columns of tile.py, with the
decoding: 290), 318 for Q6_K, 357 for Q8_0, and a decoding for each 16 columns. The gain is larger than that where
tile.py unrolls a block of 256: presumably because its code is too long for the cache of decoded instructions. One Zen 4
core compiled for AVX2, 16 columns of 7168 values, against four columns four times: IQ3_S 2.2 times as fast, IQ2_XS 1.7,
Q6_K 1.5, Q4_K and Q2_K 1.3, IQ4_XS, IQ4_NL, Q4_0 and Q8_0 1.2. So every quantized format is done this way.

Tried for codes of 8 bits (Q8_0, IQ4): codes and activations as 16-bit words, `vpmaddwd` and `vpaddd` alone: as many
instructions, of which half multiply, but twice the loads: 1.02 times as fast as four columns.
"""

from typing import Any

from numba.core import cgutils

from .activation import RECORD_BYTES
from .lanes import F32, I8, I64, Lanes, Memory, space, splat
from .machine import LANES

COLUMNS = 4  # that registers hold
VECTOR = 4 * LANES  # bytes: a word of every row, or a number of every row


class Decoded:
    """The 32s of a block in memory: codes [32][word], factors [32][factor], 16 rows each."""

    def __init__(self, codes: Memory, factors: Memory, scales: int, count: int):
        self._codes, self._factors, self._scales, self._count = codes, factors, scales, count

    def at(self, builder, b) -> "Decoded":
        """From number `b` on, an SSA value."""
        codes = self._codes.moved(builder.mul(b, I64(8 * VECTOR)))
        factors = self._factors.moved(builder.mul(b, I64(self._count * VECTOR)))
        return Decoded(codes, factors, self._scales, self._count)

    def codes(self, word: int) -> Lanes:
        return (self._codes + word * VECTOR).load(I8, VECTOR)

    def factors(self) -> tuple[list[Lanes], list[Lanes]]:
        all = [(self._factors + i * VECTOR).load(F32, LANES) for i in range(self._count)]
        return all[: self._scales], all[self._scales :]

    def store(self, group: Any, form: Any, words: Memory) -> "Decoded":
        ready = form.ready()
        for b in range(form.VALUES // 32):
            group.fetch(words, b)
            if ready is None:
                for word in range(8):
                    (self._codes + (8 * b + word) * VECTOR).store(group.codes(form, b, word))
            scales, negative = group.factors(form, b)
            for i, factor in enumerate([*scales, *negative]):
                (self._factors + (b * self._count + i) * VECTOR).store(factor)
        return self if ready is None else Decoded(ready, self._factors, self._scales, self._count)


def emit(group: Any, fours, arguments, widest: int) -> None:
    """`fours`: how many times four columns, an SSA value; `group`: tile._Group of four columns."""
    builder, form = group.builder, group.form
    weights, groups, blocks, x_list, y_list, y_offset = arguments
    steps, count = form.VALUES // 32, form.SCALES * (2 if group.has_minima() else 1)
    codes, factors = (space(builder, steps * each * VECTOR) for each in (8, count))
    buffer = Decoded(codes, factors, form.SCALES, count)
    totals = space(builder, widest * VECTOR)
    zeros = splat(builder, 0.0, F32, LANES)
    size = builder.mul(blocks, I64(LANES * form.BYTES))
    x_list, y_list = (Memory(builder, at) for at in (x_list, y_list))
    with cgutils.for_range(builder, groups) as loop:
        start = builder.add(weights, builder.mul(loop.index, size))
        offset = builder.add(y_offset, builder.mul(loop.index, I64(VECTOR)))
        for c in range(widest):
            (totals + c * VECTOR).store(zeros)
        group.fetch_halves(start, blocks)
        with cgutils.for_range(builder, blocks) as block:
            words, half = group.planes(start, blocks, block.index)
            decoded = buffer.store(group, form(words, half), words)
            step = builder.mul(block.index, I64(RECORD_BYTES * steps))
            with cgutils.for_range(builder, fours) as four:
                here = x_list.moved(builder.mul(four.index, I64(8 * COLUMNS)))
                xs = [Memory(builder, (here + 8 * c).load(I64).value).moved(step) for c in range(COLUMNS)]
                group.totals = [
                    totals.moved(builder.mul(four.index, I64(COLUMNS * VECTOR))) + c * VECTOR for c in range(COLUMNS)
                ]
                if steps == 1:
                    group.step(decoded, xs)
                else:
                    with cgutils.for_range(builder, I64(steps)) as b:
                        group.step(decoded.at(builder, b.index), [x.moved(builder.shl(b.index, I64(6))) for x in xs])
        with cgutils.for_range(builder, builder.mul(fours, I64(COLUMNS))) as column:
            y = Memory(builder, y_list.moved(builder.shl(column.index, I64(3))).load(I64).value).moved(offset)
            y.store(totals.moved(builder.mul(column.index, I64(VECTOR))).load(F32, LANES))
