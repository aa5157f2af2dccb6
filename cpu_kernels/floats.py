"""The kernels of plain numbers (F32, F16, BF16) on the x16 layout: float32 activations, float32 sums.

Lane r belongs to row r of a group of 16. Each column adds, for 32 values at a time, fma by fma, and then that part to
its total: as exact as several chains of additions, and the same for every tile width.
"""

from typing import Any, ClassVar

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import F32, I64, Lanes, Memory, splat, vector
from .machine import LANES, MACHINE
from .tile import AHEAD, FETCHING, multiplier

PART = 32  # values added up before they join the total


class FloatFormat:
    """BYTES a value; `load` reads one value of 16 rows, side by side, as float32."""

    VALUES: ClassVar[int] = 1
    BYTES: ClassVar[int]
    HALF: ClassVar[int | None]

    @staticmethod
    def load(at: Memory) -> Lanes:
        raise NotImplementedError


class _Columns:
    def __init__(self, builder: Any, form: type[FloatFormat], xs: list[Memory]):
        self.builder, self.form, self.xs = builder, form, xs
        self.totals = [cgutils.alloca_once(builder, vector(F32, LANES)) for _ in xs]
        self.part = [cgutils.alloca_once(builder, vector(F32, LANES)) for _ in xs]

    def clear(self, places: list[Any]) -> None:
        for place in places:
            self.builder.store(splat(self.builder, 0.0, F32, LANES).value, place)

    def _load(self, place: Any) -> Lanes:
        return Lanes(self.builder, self.builder.load(place, typ=vector(F32, LANES)))

    def values(self, weights: Memory, first, count) -> None:
        """`count` values from number `first` on, an SSA value, as one part of each total."""
        self.clear(self.part)
        with cgutils.for_range(self.builder, count) as loop:
            at = self.builder.add(first, loop.index)
            w = self.form.load(weights.moved(self.builder.mul(at, I64(self.form.BYTES * LANES))))
            for x, place in zip(self.xs, self.part, strict=True):
                factor = x.moved(self.builder.mul(at, I64(4))).splat(F32, LANES)
                self.builder.store(w.fma(factor, self._load(place)).value, place)
        for total, place in zip(self.totals, self.part, strict=True):
            self.builder.store((self._load(total) + self._load(place)).value, total)

    def results(self) -> list[Lanes]:
        return [self._load(total) for total in self.totals]


def emit_columns(builder, form: type[FloatFormat], columns: int, arguments) -> None:
    weights, groups, values, x_list, y_list, y_offset = arguments
    if columns == MACHINE.TILED:  # no tile registers here: twice the widest that vector registers hold
        for c in (0, columns // 2):
            lists = [builder.add(address, I64(8 * c)) for address in (x_list, y_list)]
            emit_columns(builder, form, columns // 2, [weights, groups, values, *lists, y_offset])
        return
    xs = [Memory(builder, (Memory(builder, x_list) + 8 * c).load(I64).value) for c in range(columns)]
    ys = [Memory(builder, (Memory(builder, y_list) + 8 * c).load(I64).value).moved(y_offset) for c in range(columns)]
    tile = _Columns(builder, form, xs)
    parts, rest = builder.lshr(values, I64(5)), builder.and_(values, I64(PART - 1))
    with cgutils.for_range(builder, groups) as group:
        size = builder.mul(values, I64(form.BYTES * LANES))
        start = Memory(builder, weights).moved(builder.mul(group.index, size))
        tile.clear(tile.totals)
        with cgutils.for_range(builder, parts) as loop:
            first = builder.mul(loop.index, I64(PART))
            if columns >= FETCHING:
                ahead = start.moved(builder.mul(first, I64(form.BYTES * LANES))) + AHEAD
                for line in range(0, PART * form.BYTES * LANES, 64):
                    (ahead + line).prefetch()
            tile.values(start, first, I64(PART))
        tile.values(start, builder.mul(parts, I64(PART)), rest)
        offset = builder.mul(group.index, I64(4 * LANES))
        for y, result in zip(ys, tile.results(), strict=True):
            y.moved(offset).store(result)


def emit_fours(builder, form: type[FloatFormat], fours, arguments) -> None:
    """Four columns after four: nothing is decoded that could be kept."""
    weights, groups, values, x_list, y_list, y_offset = arguments
    with cgutils.for_range(builder, fours) as four:
        lists = [builder.add(address, builder.shl(four.index, I64(5))) for address in (x_list, y_list)]
        emit_columns(builder, form, 4, [weights, groups, values, *lists, y_offset])


def float_multiplier(form: type[FloatFormat]) -> Any:
    """The intrinsic multiply of tile.multiplier; `blocks` are values, columns are float32."""
    return multiplier(form, emit_columns, emit_fours)


def float_dequantizer(form: type[FloatFormat]) -> Any:
    """The intrinsic dequantize of dequantizer.dequantizer; `blocks` are values."""

    @intrinsic
    def dequantize(typing, weights, blocks, target, stride):
        def codegen(context, builder, signature, a):
            weights, blocks, target, stride = a
            rows = [Memory(builder, builder.add(target, builder.mul(stride, I64(r)))) for r in range(LANES)]
            with cgutils.for_range(builder, blocks) as loop:
                at = builder.mul(loop.index, I64(form.BYTES * LANES))
                values = form.load(Memory(builder, weights).moved(at))
                for r, row in enumerate(rows):
                    scalar = builder.extract_element(values.value, I64(r))
                    row.moved(builder.mul(loop.index, I64(4))).store(Lanes(builder, scalar))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return dequantize
