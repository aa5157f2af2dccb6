"""64-bit ARM with `sdot` (every server core since 2018, every Apple M) and `smmla`."""

from collections.abc import Sequence

from ..lanes import I32, Lanes, Memory, call, join, splat
from .base import LANES, Machine


class NeonDot(Machine):
    """`sdot` of 16 bytes; weights below 128 are the same signed or not."""

    SIGNED = True
    REGISTER = "=w"
    BYTES = 16
    SETTLES = True

    @classmethod
    def _lookup(cls, index, entries):
        return Lanes(
            index.builder, call(index.builder, "llvm.aarch64.neon.tbl1.v16i8", index.type, entries, index.value)
        )

    def start(self, sums):
        return [sums.part(i, 4) for i in range(4)]

    def add(self, accumulator, w: Lanes, x: Lanes):
        return [self._dots("sdot", sums, w.part(i, 4), x.part(i, 4)) for i, sums in enumerate(accumulator)]

    def _dots(self, name: str, sums: Lanes, a: Lanes, b: Lanes) -> Lanes:
        value = call(self.builder, f"llvm.aarch64.neon.{name}.v4i32.v16i8", sums.type, sums.value, a.value, b.value)
        return Lanes(self.builder, value)

    def total(self, accumulator) -> Lanes:
        return join(accumulator)


class NeonI8mm(NeonDot):
    """`smmla`: 2 rows times 2 columns, 8 values each, so half of `sdot`'s instructions for two columns or more.

    Columns go in pairs. A step only keeps its codes; the next one zips both steps' words to 8 bytes for each row, which
    all pairs of columns share. The accumulator of a pair's first column: 8 sums of [row, column] 2 x 2.
    """

    def begin(self, starts):
        self.held: tuple[Lanes, Sequence[Memory]] | None = None
        if len(starts) % 2:
            return super().begin(starts)
        zeros = splat(self.builder, 0, I32, LANES)
        pairs = [[(start or zeros).part(0, 4) for start in starts[i : i + 2]] for i in range(0, len(starts), 2)]
        return [part for a, b in pairs for part in ([a.pick([0, 4, 0, 4], b)] * 8, [])]  # a start's lanes are all alike

    def multiply(self, accumulators, w, xs):
        if len(xs) % 2:
            return super().multiply(accumulators, w, xs)
        if self.held is None:
            self.held = w, xs
            return accumulators
        (first, starts), self.held = self.held, None
        pairs_of_rows = []
        for quarter in range(4):
            a, b = (words.part(quarter, 4).bits(I32) for words in (first, w))
            pairs_of_rows += [a.pick([i, i + 4, i + 1, i + 5], b).bytes() for i in (0, 2)]
        result = list(accumulators)
        for column in range(0, len(xs), 2):
            x = join([start.load(I32, 2) for start in starts[column : column + 2]]).bytes()
            result[column] = [
                self._dots("smmla", total, rows, x)
                for total, rows in zip(accumulators[column], pairs_of_rows, strict=True)
            ]
        return self.pin(result)

    def totals(self, accumulators):
        if len(accumulators) % 2:
            return super().totals(accumulators)
        sums = []
        for pair in accumulators[::2]:
            for column in (0, 1):
                lanes = [column, column + 2, column + 4, column + 6]
                sums.append(join([a.pick(lanes, b) for a, b in zip(pair[::2], pair[1::2], strict=True)]))
        return sums
