"""The kernels of every quantized format on the x16 layout (x16.py), emitted from the format's description.

A group is 16 rows; lane r of every vector belongs to row r of the group. The register tile is one group x 1, 2, 4 or
8 columns of activations (activation.py), or four columns after four (wide.py). Each column adds the same numbers in the
same order whatever the width, so its result is bit-identical however many are computed with it: for each 32 values the
exact integer dot product with what the codes say less their offset, then
    total = fma(dot x scale, activation scale, total) ; total = fma(-minimum, activation sum, total)
where the second term is for formats with minima. The dot product of codes with an offset starts from minus the offset
times the sum of the activations' codes, ready in their record, so an offset costs nothing.

One Zen 4 core, Q4_K rows of 7168 values in its cache: 48 GB/s x 1 column, 310 GFLOP/s x 8; compiled for AVX2 35 GB/s
and 211 GFLOP/s (x 4). More columns on AVX2: wide.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import wide
from .activation import (
    CODES,
    RECORD_BYTES,
    SCALE,
    START,
    START_BITS,
    START_HIGH,
    START_LOW,
    SUM,
    SUM_HIGH,
    SUM_LOW,
)
from .lanes import F32, I8, I16, I32, I64, Lanes, Memory, splat, vector
from .machine import LANES, MACHINE

BLOCK = 32  # values that share an activation scale
# Tiles of so many columns and more compute longer on a line of weights than the memory takes to bring it, but the CPU
# by itself fetches up to the end of a page only: ask for what comes this many bytes later. A V3 layer in Q4_K gains a
# quarter at 16 columns an expert, a third at 8; one column loses (Q6_K a fifth), because the memory is never idle.
FETCHING, AHEAD = 4, 4096


class Format:
    """A quantized format as the emitters see it: value = scale x code - minimum. One instance for each emitted block.

    `scales(b)` and `minima(b)` are for the 32 values number b of the block: one vector, or two where 16 values share
    one (SCALES = 2).
    """

    VALUES: ClassVar[int]  # of a block
    BYTES: ClassVar[int]
    HALF: ClassVar[int | None] = None  # offset of the 2-byte field of a block whose other fields are 4-byte words
    ORDER: ClassVar[tuple[int, ...] | None] = None  # a block's words in memory: in the order of their first use
    BITS: ClassVar[int]  # codes are below 2**BITS
    SIGNED: ClassVar[bool] = False  # codes need all of a signed byte
    OFFSET: ClassVar[int] = 0  # a power of two: value = scale x (code - OFFSET)
    SCALES: ClassVar[int] = 1

    def __init__(self, words: Memory, half: Memory):
        self._words, self._half = words, half
        self.decode()

    def decode(self) -> None:
        """What is computed once a block."""

    def codes(self, block: int, word: int) -> Lanes:
        """64 bytes: values 4·word .. 4·word + 3 of the 32 numbered `block`, for each row."""
        raise NotImplementedError

    def scales(self, block: int) -> list[Lanes]:
        raise NotImplementedError

    def minima(self, block: int) -> list[Lanes] | None:
        return None

    def ready(self) -> Memory | None:
        """Where all codes of the block lie in memory, 64 bytes for each 4 values, if they do."""
        return None

    def word(self, index: int) -> Lanes:
        """Word `index` of each row's block (the 2-byte field not counted) as int32 lanes."""
        return (self._words + 4 * LANES * self.place(index)).load(I32, LANES)

    def word_bytes(self, index: int) -> Lanes:
        return (self._words + 4 * LANES * self.place(index)).load(I8, 4 * LANES)

    def half(self) -> Lanes:
        """The 2-byte field of each row's block as int16 bit patterns."""
        return self._half.load(I16, LANES)

    def lookup(self, table: list[int], index: Lanes) -> Lanes:
        """table[i] for indices 0..15."""
        return MACHINE.lookup(table, index)

    @classmethod
    def words(cls) -> int:
        return cls.BYTES // 4

    @classmethod
    def place(cls, word: int) -> int:
        """Where a word of the file's block lies in the x16 block."""
        return cls.ORDER.index(word) if cls.ORDER else word


def flags(bits: Lanes, word: int, value: int) -> Lanes:
    """64 bytes that are `value` where bit 4·word + i of the row's 32 bits is set, for byte i of 4 in each lane."""
    spread = bits.pick([4 * r + word // 2 for r in range(LANES) for _ in range(4)])
    return spread.where([1 << (4 * (word % 2) + i) for _ in range(LANES) for i in range(4)], value)


def byte(lanes: Lanes, index: int, signed: bool = False) -> Lanes:
    """Byte `index` of each int32 lane, as float32."""
    if signed:
        return (lanes << (24 - 8 * index)).shift_signed(24).real()
    return ((lanes >> (8 * index)) & 255).real()


def _offset(form: type[Format] | Format) -> int:
    """Of the codes as they are multiplied: signed ones get 128 on machines whose weight bytes are unsigned."""
    return 128 if form.SIGNED and not MACHINE.SIGNED else form.OFFSET


class _Group:
    """Emits one row group times some columns."""

    def __init__(self, builder: Any, form: type[Format], columns: int):
        self.builder, self.form, self.columns = builder, form, columns
        self.machine = MACHINE(builder, form.BITS, form.SIGNED)
        self.totals = [cgutils.alloca_once(builder, vector(F32, LANES)) for _ in range(columns)]

    def clear(self) -> None:
        for total in self.totals:
            self.builder.store(splat(self.builder, 0.0, F32, LANES).value, total)

    def total(self, column: int) -> Lanes:
        return Lanes(self.builder, self.builder.load(self.totals[column], typ=vector(F32, LANES)))

    def block(self, words: Memory, half: Memory, xs: list[Memory]) -> None:
        """One block of the format."""
        form = self.form(words, half)
        parts = form.VALUES // BLOCK
        for b in range(parts):
            if self.columns >= FETCHING:
                self.fetch(words, b)
            records = [x + RECORD_BYTES * b for x in xs]
            codes = partial(self.codes, form, b)
            sums = [self.dots(codes, part, records) for part in range(form.SCALES)]
            scales, negative = self.factors(form, b)
            for column, record in enumerate(records):
                self.finish([s[column] for s in sums], scales, negative, record, column)

    def fetch(self, words: Memory, b: int) -> None:
        """Ask for part `b` of what is read some 4 KiB after this block's words."""
        parts, count = self.form.VALUES // BLOCK, self.form.words()
        for line in range(b * count // parts, (b + 1) * count // parts):
            (words + (AHEAD + 64 * line)).prefetch()

    def factors(self, form: Format, b: int) -> tuple[list[Lanes], list[Lanes]]:
        """Scales and negative minima."""
        scales, minima = form.scales(b), form.minima(b)
        return scales, [minimum * -1.0 for minimum in minima] if minima else []

    def has_minima(self) -> bool:
        return self.form.minima is not Format.minima

    def planes(self, weights, blocks, block) -> tuple[Memory, Memory]:
        return planes(self.builder, self.form, weights, blocks, block)

    def fetch_halves(self, weights, blocks) -> None:
        if self.form.HALF is not None:
            _fetch_halves(self.builder, weights, blocks)

    def dots(self, codes: Callable[[int], Lanes], part: int, records: list[Memory]) -> list[Lanes]:
        """Each column's dot products for the words that share scale `part`."""
        count = 8 // self.form.SCALES
        accumulators = self.machine.begin([self.start(part, record) for record in records])
        for word in range(part * count, (part + 1) * count):
            w, xs = codes(word), [record + (CODES + 4 * word) for record in records]
            accumulators = self.machine.multiply(accumulators, w, xs)
        return self.machine.totals(accumulators)

    def codes(self, form: Format, b: int, word: int) -> Lanes:
        """As the machine multiplies them."""
        codes = form.codes(b, word)
        return codes ^ 0x80 if form.SIGNED and not MACHINE.SIGNED else codes

    def start(self, part: int, record: Memory) -> Lanes | None:
        """-(offset of the codes) x the sum of the activation codes of this part; None: zeros."""
        offset = _offset(self.form)
        if not offset:
            return None
        field = START if self.form.SCALES == 1 else (START_LOW, START_HIGH)[part]
        start = (record + field).splat(I32, LANES)
        bits = START_BITS + 1 - offset.bit_length()
        return start.shift_signed(bits) if bits else start

    def finish(self, sums: list[Lanes], scales, negative, record: Memory, column: int) -> None:
        value = sums[0].real() * scales[0]
        if len(sums) == 2:
            value = sums[1].real().fma(scales[1], value)
        total = value.fma((record + SCALE).splat(F32, LANES), self.total(column))
        fields = [SUM] if len(negative) == 1 else [SUM_LOW, SUM_HIGH]
        for minimum, field in zip(negative, fields, strict=False):
            total = minimum.fma((record + field).splat(F32, LANES), total)
        self.keep(column, self.machine.settle(total))

    def keep(self, column: int, total: Lanes) -> None:
        self.builder.store(total.value, self.totals[column])


class _Fours(_Group):
    """Four columns of a wide tile (wide.py): totals and what is decoded lie in memory."""

    def __init__(self, builder: Any, form: type[Format]):
        super().__init__(builder, form, wide.COLUMNS)

    def total(self, column: int) -> Lanes:
        return self.totals[column].load(F32, LANES)

    def keep(self, column: int, total: Lanes) -> None:
        self.totals[column].store(total)

    def step(self, decoded: wide.Decoded, records: list[Memory]) -> None:
        """32 values."""
        sums = [self.dots(decoded.codes, part, records) for part in range(self.form.SCALES)]
        scales, negative = decoded.factors()
        for column, record in enumerate(records):
            self.finish([s[column] for s in sums], scales, negative, record, column)


def planes(builder, form: type[Format], weights, blocks, block):
    """Where a block's words and its 2-byte fields lie in a group of `blocks` blocks at address `weights`."""
    halves = I64(0) if form.HALF is None else builder.mul(blocks, I64(2 * LANES))
    words = builder.add(halves, builder.mul(block, I64(4 * LANES * form.words())))
    return Memory(builder, weights).moved(words), Memory(builder, weights).moved(builder.mul(block, I64(2 * LANES)))


def _fetch_halves(builder, weights, blocks) -> None:
    """Ask for all 2-byte fields of a group: they are used too slowly for the CPU to notice that it should."""
    lines = builder.lshr(builder.add(blocks, I64(1)), I64(1))
    with cgutils.for_range(builder, lines) as line:
        Memory(builder, weights).moved(builder.mul(line.index, I64(64))).prefetch()


def emit_columns(builder, form: type[Format], columns: int, arguments) -> None:
    if columns == MACHINE.TILED:
        group = _Group(builder, form, columns)
        group.machine.emit(group, arguments)
        return
    weights, groups, blocks, x_list, y_list, y_offset = arguments
    xs = [Memory(builder, (Memory(builder, x_list) + 8 * c).load(I64).value) for c in range(columns)]
    ys = [Memory(builder, (Memory(builder, y_list) + 8 * c).load(I64).value).moved(y_offset) for c in range(columns)]
    tile = _Group(builder, form, columns)
    group_bytes = builder.mul(blocks, I64(LANES * form.BYTES))
    with cgutils.for_range(builder, groups) as group:
        start = builder.add(weights, builder.mul(group.index, group_bytes))
        tile.clear()
        tile.fetch_halves(start, blocks)
        with cgutils.for_range(builder, blocks) as loop:
            words, half = planes(builder, form, start, blocks, loop.index)
            step = builder.mul(loop.index, I64(RECORD_BYTES * form.VALUES // BLOCK))
            tile.block(words, half, [x.moved(step) for x in xs])
        offset = builder.mul(group.index, I64(4 * LANES))
        for column, y in enumerate(ys):
            y.moved(offset).store(tile.total(column))


def emit_fours(builder, form: type[Format], fours, arguments) -> None:
    """`fours` times four columns, an SSA value, at most MACHINE.WIDE columns."""
    wide.emit(_Fours(builder, form), fours, arguments, MACHINE.WIDE)


Emitter = Callable[[Any, Any, Any, list[Any]], None]  # of a number of columns, or of a number of fours, an SSA value


def multiplier(form: type, emit: Emitter = emit_columns, fours: Emitter = emit_fours) -> Any:
    """The intrinsic multiply(weights, groups, blocks, columns, x_list, y_list, y_offset).

    `groups` row groups of `blocks` blocks times the columns at the addresses in x_list; their number is one of
    MACHINE.COLUMNS or a multiple of four up to MACHINE.WIDE. Row r of column c goes to y_list[c] + y_offset + 4r.
    `emit` writes the code of one number of columns, `fours` that of wide tiles: those of this file, or of floats.py for
    plain numbers.
    """

    @intrinsic
    def multiply(typing, weights, groups, blocks, columns, x_list, y_list, y_offset):
        def codegen(context, builder, signature, a):
            end = builder.append_basic_block("end")
            switch = builder.switch(a[3], end)
            for columns in MACHINE.COLUMNS:
                case = builder.append_basic_block(f"columns{columns}")
                switch.add_case(I64(columns), case)
                builder.position_at_end(case)
                emit(builder, form, columns, [*a[:3], *a[4:]])
                builder.branch(end)
            if MACHINE.WIDE:
                case = builder.append_basic_block("fours")
                for columns in range(2 * wide.COLUMNS, MACHINE.WIDE + 1, wide.COLUMNS):
                    switch.add_case(I64(columns), case)
                builder.position_at_end(case)
                fours(builder, form, builder.udiv(a[3], I64(wide.COLUMNS)), [*a[:3], *a[4:]])
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return multiply
