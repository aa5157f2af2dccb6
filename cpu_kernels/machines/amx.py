"""x86-64 with AMX-INT8 (Sapphire Rapids and later): AVX-512 VNNI for few columns, tile registers for 16.

A tile register holds 16 rows of 64 bytes. `tdpbssd` multiplies activations, a row of 32 signed bytes for each of 16
columns, by weights, 8 rows of one word of 4 signed bytes for each of 16 rows of the matrix (16 values, half of either,
for formats with two scales): exactly the vectors that Format.codes makes, less the codes' offset, one below the other.
Its sums are the same integers as the other widths' and each column is finished by the same additions (tile.py), so its
bits are the same. (`tdpbsud`, for unsigned codes, is of no use: those without an offset are below 128.)

For 32 values x 16 rows x 16 columns of Q4_K: 111 instructions. 85 are vector arithmetic: for each column 4 (convert,
multiply by the scale, two fused multiply-adds with broadcast operands), 21 for codes, scales and minima; the rest store
8 vectors of codes, ask for weights and move tiles (2 loads, 1 product, 1 store). Twice 8 columns with VNNI are 234, 128
of them products. At two of 512 bits a cycle 43 cycles against 117, beside which pass the product's 16, the tile store's
16 and 82 loads at two a cycle: 2.7 times as fast at best. Q6_K 125 against 307, IQ4_XS 77 against 262, IQ2_XXS 117
against 314; Q8_0 49 against 210, bound by its 65 loads: 3.2 times.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from ..activation import CODES, RECORD_BYTES, SCALE, START_LOW
from ..lanes import F32, I8, I32, I64, Lanes, Memory, call, constants, join, space, vector
from .base import LANES
from .x86 import Vnni512

WIDTH = 16  # columns
BLOCK = 32  # values that share an activation scale
WORDS = BLOCK // 4
VECTOR = 4 * LANES  # bytes: a word of every row, or a number of every row
CODE_BYTES, FIELD_BYTES = BLOCK, START_LOW - SCALE
PANEL_BYTES = WIDTH * (CODE_BYTES + FIELD_BYTES)  # of a block: [column] 32 codes, [column] scale and sums
# Values of all columns that are gathered, then multiplied by every row group: 24 KiB, half of the L1 cache. Sums wait
# in the results meanwhile. Gathering takes 12 stores a block, about as many cycles; a call has 4 groups and more.
CHUNK = 1024
STEPS = 8  # blocks of 32 values in one turn of the loop, at least
# Storing codes, loading them into a tile, multiplying, storing the sums and loading them take 150 cycles one after the
# other, and how much of that a CPU overlaps by itself, looking 512 instructions ahead, depends on whether tiles are
# forwarded stores that are under way. So a step is multiplied two steps after its codes were stored, and added up one
# step after that; scales and minima wait in memory.
MULTIPLIED, FINISHED, RING = 2, 3, 4
FETCH = 4096  # bytes that weights are asked for ahead: see tile.AHEAD

VOID = ir.VoidType()


def palette(scales: int) -> bytes:
    """The 64 bytes of a tile configuration: 4 registers of sums, 2 of activations, 2 of weights.

    Palette 1 | first row to load 0 | 14 bytes | bytes of a row, 16 x uint16 | rows, 16 x uint8.
    """
    row_bytes = [4 * LANES] * 4 + [BLOCK // scales] * 2 + [4 * LANES] * 2
    rows = [WIDTH] * 6 + [BLOCK // 4 // scales] * 2
    widths = b"".join(count.to_bytes(2, "little") for count in row_bytes)
    return b"\1" + bytes(15) + widths.ljust(32, b"\0") + bytes(rows).ljust(16, b"\0")


class Amx(Vnni512):
    COLUMNS = (*Vnni512.COLUMNS, WIDTH)
    TILED = WIDTH

    def emit(self, group: Any, arguments: list[Any]) -> None:
        _Kernel(self.builder, group).emit(*arguments)


class _Kernel:
    """multiply(weights, groups, blocks, x_list, y_list, y_offset) of 16 columns; `group`: tile._Group of the format."""

    def __init__(self, builder: Any, group: Any):
        self.builder, self.group, self.form = builder, group, group.form
        self.parts = group.form.SCALES
        self.steps = group.form.VALUES // BLOCK  # of a block of the format
        self.panel = space(builder, CHUNK // BLOCK * PANEL_BYTES)
        self.count = self.parts * (2 if group.has_minima() else 1)  # of factors of a step
        # Of the steps on their way: codes [word][row], scales and minima of each part, sums [column][row] of each part.
        self.codes = [space(builder, WORDS * VECTOR) for _ in range(RING)]
        self.factors = [[space(builder, VECTOR) for _ in range(self.count)] for _ in range(STEPS)]
        self.sums = [[space(builder, WIDTH * VECTOR) for _ in range(self.parts)] for _ in range(2)]

    def emit(self, weights, groups, blocks, x_list, y_list, y_offset) -> None:
        builder, (xs, ys) = self.builder, (Memory(self.builder, at) for at in (x_list, y_list))
        chunk = I64(CHUNK // self.form.VALUES)
        size = builder.mul(blocks, I64(LANES * self.form.BYTES))
        self._configure()
        chunks = builder.udiv(builder.add(blocks, I64(chunk.constant - 1)), chunk)
        with cgutils.for_range(builder, chunks) as part:
            first = builder.mul(part.index, chunk)
            rest = builder.sub(blocks, first)
            count = builder.select(builder.icmp_signed("<", rest, chunk), rest, chunk)
            self._gather(xs, first, count)
            continues = builder.sext(builder.icmp_unsigned("!=", part.index, I64(0)), I32)
            with cgutils.for_range(builder, groups) as loop:
                start = builder.add(weights, builder.mul(loop.index, size))
                offset = builder.add(y_offset, builder.mul(loop.index, I64(VECTOR)))
                places = [Memory(builder, (ys + 8 * c).load(I64).value).moved(offset) for c in range(WIDTH)]
                self._resume(places, continues)
                self._blocks(_Run(builder, self.group, start, size, blocks, first, count))
                for column, place in enumerate(places):
                    place.store(self.group.total(column))
        call(builder, "llvm.x86.tilerelease", VOID)

    def _configure(self) -> None:
        place = space(self.builder, 64)
        place.store(Lanes(self.builder, constants(I8, tuple(palette(self.parts)))))
        call(self.builder, "llvm.x86.ldtilecfg", VOID, place.base)

    def _gather(self, xs: Memory, first, count) -> None:
        """`count` blocks of the format of every column into the panel, four columns at a time."""
        builder = self.builder
        start = builder.mul(first, I64(self.steps * RECORD_BYTES))
        with cgutils.for_range(builder, I64(WIDTH // 4)) as four:
            here = xs.moved(builder.mul(four.index, I64(4 * 8)))
            columns = [Memory(builder, (here + 8 * c).load(I64).value).moved(start) for c in range(4)]
            codes = self.panel.moved(builder.mul(four.index, I64(4 * CODE_BYTES)))
            fields = self.panel.moved(builder.mul(four.index, I64(4 * FIELD_BYTES))) + WIDTH * CODE_BYTES
            with cgutils.for_range(builder, builder.mul(count, I64(self.steps))) as loop:
                records = [column.moved(builder.mul(loop.index, I64(RECORD_BYTES))) for column in columns]
                to = builder.mul(loop.index, I64(PANEL_BYTES))
                for i in (0, 2):
                    pair = join([(record + CODES).load(I8, CODE_BYTES) for record in records[i : i + 2]])
                    (codes.moved(to) + i * CODE_BYTES).store(pair)
                fields.moved(to).store(join([(record + SCALE).load(F32, FIELD_BYTES // 4) for record in records]))

    def _resume(self, places: list[Memory], continues) -> None:
        """The totals begin with nothing, or go on from what the chunk before has left in the results."""
        undefined = ir.Constant(vector(I32, LANES), ir.Undefined)
        mask = Lanes(self.builder, self.builder.insert_element(undefined, continues, I32(0))).pick([0] * LANES)
        for total, place in zip(self.group.totals, places, strict=True):
            self.builder.store((place.load(I32, LANES) & mask).bits(F32).value, total)

    def _blocks(self, run: "_Run") -> None:
        """The blocks of a run, some at a time; those that are left over one at a time."""
        together = max(1, STEPS // self.steps)
        turns = self.builder.udiv(run.count, I64(together))
        self._pipeline(run, I64(0), turns, together, (MULTIPLIED, FINISHED))
        if together > 1:
            done = self.builder.mul(turns, I64(together))
            self._pipeline(run, done, self.builder.sub(run.count, done), 1, (0, 0))

    def _pipeline(self, run: "_Run", first, turns, together: int, delays: tuple[int, int]) -> None:
        """Every step is decoded, multiplied, finished: the latter two `delays` steps later, so in a later turn too."""
        builder, count = self.builder, together * self.steps
        stages = list(zip((self._multiply, self._finish), delays, strict=True))
        with cgutils.for_range(builder, turns) as loop:
            block = builder.add(first, builder.mul(loop.index, I64(together)))
            panel = self._record(block)
            later = builder.icmp_unsigned("!=", loop.index, I64(0))
            for step in range(count):
                if step % self.steps == 0:
                    number = builder.add(block, I64(step // self.steps))
                    form, ahead = self.form(*run.planes(number)), run.ahead(number)
                self._decode(form, ahead, step)
                if self.steps == 1:
                    self._scale(form, [step])
                elif step == delays[-1]:
                    self._scale(form, range(count))
                for stage, delay in stages:
                    with builder.if_then(later, likely=True) if step < delay else nullcontext():
                        stage(panel, step - delay)
        with builder.if_then(builder.icmp_unsigned("!=", turns, I64(0))) if delays[-1] else nullcontext():
            panel = self._record(builder.add(first, builder.mul(turns, I64(together))))
            for step in range(delays[-1]):
                for stage, delay in stages:
                    if step < delay:
                        stage(panel, step - delay)

    def _record(self, block) -> Memory:
        return self.panel.moved(self.builder.mul(block, I64(self.steps * PANEL_BYTES)))

    def _decode(self, form: Any, ahead: Memory, step: int) -> None:
        """Codes, scales and minima of a step into its places; part of the weights `ahead` is asked for."""
        b, words = step % self.steps, form.words()
        for word in range(b * words // self.steps, (b + 1) * words // self.steps):
            (ahead + VECTOR * word).prefetch()
        for word in range(WORDS):
            codes = form.codes(b, word)
            (self.codes[step % RING] + word * VECTOR).store(codes - form.OFFSET if form.OFFSET else codes)

    def _scale(self, form: Any, steps: Sequence[int]) -> None:
        for step in steps:
            scales, negative = self.group.factors(form, step % self.steps)
            for place, factor in zip(self.factors[step], [*scales, *negative], strict=True):
                place.store(factor)

    def _multiply(self, panel: Memory, step: int) -> None:
        """Registers: sums in 0 .. 3, activations in 4, 5, weights in 6, 7, by turns."""
        count = WORDS // self.parts
        for part, place in enumerate(self.sums[step % 2]):
            number = step * self.parts + part
            sums, x, w = (I8(first + number % of) for first, of in ((0, 4), (4, 2), (6, 2)))
            self._tile("tilezero", sums)
            self._tile("tileloadd64", x, panel + (step * PANEL_BYTES + part * 4 * count), CODE_BYTES)
            self._tile("tileloadd64", w, self.codes[step % RING] + part * count * VECTOR, VECTOR)
            self._tile("tdpbssd", sums, x, w)
            self._tile("tilestored64", sums, place, VECTOR)

    def _tile(self, name: str, *operands: Any) -> None:
        """Registers by number; or an address and how many bytes the rows of a tile are apart."""
        values = []
        for operand in operands:
            if isinstance(operand, Memory):
                operand = self.builder.gep(operand.base, [I64(operand.offset)], source_etype=I8)
            values.append(I64(operand) if isinstance(operand, int) else operand)
        call(self.builder, f"llvm.x86.{name}", VOID, *values)

    def _finish(self, panel: Memory, step: int) -> None:
        factors = [place.load(F32, LANES) for place in self.factors[step % STEPS]]
        fields = panel + (step * PANEL_BYTES + WIDTH * CODE_BYTES - SCALE)
        for column in range(WIDTH):
            sums = [(place + column * VECTOR).load(I32, LANES) for place in self.sums[step % 2]]
            record = fields + column * FIELD_BYTES
            self.group.finish(sums, factors[: self.parts], factors[self.parts :], record, column)


class _Run:
    """`count` blocks from number `first` on of the row group at address `start`; groups are `size` bytes apart."""

    def __init__(self, builder: Any, group: Any, start, size, blocks, first, count):
        self.builder, self.group = builder, group
        self.start, self.size, self.blocks, self.first, self.count = start, size, blocks, first, count
        self.distance = -(-FETCH // (VECTOR * group.form.words()))  # blocks
        group.fetch_halves(builder.add(start, builder.mul(first, I64(2 * LANES))), count)

    def planes(self, block) -> tuple[Memory, Memory]:
        return self.group.planes(self.start, self.blocks, self.builder.add(self.first, block))

    def ahead(self, block) -> Memory:
        """What is read some 4 KiB after this block's words: in this run or in the next row group's."""
        builder = self.builder
        later = builder.add(block, I64(self.distance))
        inside = builder.icmp_signed("<", later, self.count)
        start = builder.select(inside, self.start, builder.add(self.start, self.size))
        later = builder.select(inside, later, builder.sub(later, self.count))
        return self.group.planes(start, self.blocks, builder.add(self.first, later))[0]
