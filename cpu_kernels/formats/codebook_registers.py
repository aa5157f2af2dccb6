"""Codebooks looked up in AVX-512 registers: VBMI, BITALG and GFNI (Zen 4, Ice Lake).

An entry of 8 values has 3 levels, one of 4 values 8 levels: as numbers of 2 or 3 bits it fits two bytes, so the
codebook is two tables of bytes. vpermi2b finds 64 bytes in 128 table entries; finds in the parts of a larger table are
blended by the index's upper bits. vpmultishiftqb then brings each value's bits into a byte, vpermb makes it a code.
One Zen 4 core, multiplied with one column: IQ2_XXS 5.3 cycles for 64 values, against 13 where entries are loaded; a
gather alone takes 9.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from ..cpu import FEATURES, VNNI512
from ..lanes import I8, Lanes, call, vector

POSSIBLE = VNNI512 and {"avx512vbmi", "avx512bitalg", "gfni"} <= FEATURES

_FLAGS = vector(ir.IntType(1), 64)


def _bytes(like: Lanes, values) -> Lanes:
    return Lanes(like.builder, ir.Constant(like.type, [ir.Constant(I8, int(v)) for v in values]))


def _call(name: str, *arguments: Lanes) -> Lanes:
    a = arguments[0]
    return Lanes(a.builder, call(a.builder, f"llvm.x86.{name}.512", a.type, *(lanes.value for lanes in arguments)))


def _shifts(offset: int, step: int) -> list[int]:
    """Of byte i of 4 in each int32 lane: a position in the 64 bits that hold two lanes."""
    return [32 * (lane % 2) + offset + step * i for lane in range(16) for i in range(4)]


def negative(signs: Lanes, word: int) -> Any:
    """64 flags: bits 4·word .. of each int32 lane."""
    positions = _bytes(signs, _shifts(4 * word, 1))
    return call(signs.builder, "llvm.x86.avx512.vpshufbitqmb.512", _FLAGS, signs.value, positions.value)


def even(sevens: Lanes) -> Lanes:
    """Bit 7 becomes the parity of the others, by a product with an 8 x 8 matrix of bits whose last row comes first."""
    rows = [0x7F, *(1 << i for i in range(6, -1, -1))]
    matrix = _bytes(sevens, rows * 8)
    product = call(sevens.builder, "llvm.x86.vgf2p8affineqb.512", sevens.type, sevens.value, matrix.value, I8(0))
    return Lanes(sevens.builder, product)


def _lookup(table: np.ndarray, indices: list[Lanes], upper: list[list[Any]]) -> list[Lanes]:
    """table[index + upper bits] for tables of 128, 256, ... bytes and some index vectors, by one load of the table."""
    found: list[list[Lanes]] = [[] for _ in indices]
    for start in range(0, len(table), 128):
        for index, flags, partial in zip(indices, upper, found, strict=True):
            low, high = _bytes(index, table[start : start + 64]), _bytes(index, table[start + 64 : start + 128])
            partial.append(_call("avx512.vpermi2var.qi", low, index, high))
            parts, level = start // 128 + 1, 0
            while parts % 2 == 0:  # two neighbours of this size are there
                b, a = partial.pop(), partial.pop()
                partial.append(Lanes(index.builder, index.builder.select(flags[level], b.value, a.value)))
                parts, level = parts // 2, level + 1
    return [partial[0] for partial in found]


class _Steps:
    """A sorted table of up to 4096 bytes with at most 3 steps in each 64: a run's number, then 128 runs' bytes."""

    def __init__(self, table: np.ndarray):
        starts = np.flatnonzero(np.diff(table, prepend=table[0] - 1))
        self.runs = np.pad(table[starts], (0, 128 - len(starts)))
        self.first = np.searchsorted(starts, np.arange(0, len(table), 64), side="right") - 1
        within = [starts[starts // 64 == chunk] % 64 for chunk in range(len(table) // 64)]
        self.steps = np.array([np.pad(at[at > 0], (0, 3 - sum(at > 0)), constant_values=64) for at in within])

    def find(self, low: Lanes, high: Lanes) -> Lanes:
        chunk, at = ((low >> 6) & 3) | (high << 2), low & 63
        run = self._of_chunk(self.first, chunk)
        for step in self.steps.T:
            passed = low.builder.icmp_unsigned(">=", at.value, self._of_chunk(step, chunk).value)
            run = Lanes(low.builder, low.builder.select(passed, (run + 1).value, run.value))
        return _lookup(self.runs, [run], [[]])[0]

    def _of_chunk(self, values: np.ndarray, chunk: Lanes) -> Lanes:
        return _call("avx512.permvar.qi", _bytes(chunk, np.pad(values, (0, 64 - len(values)))), chunk)


def _bit(lanes: Lanes, number: int) -> Any:
    return lanes.builder.icmp_unsigned("!=", (lanes & (1 << number)).value, lanes.constant(0).value)


class Decoder:
    """Of one block. What a 32 needs for all its codes is kept; of large tables, for two 32s at a time."""

    def __init__(self, form: Any):
        self.form, self.width = form, 2 if form.GRID.shape[1] == 8 else 3
        self.kept: dict[tuple[str, int, int], Any] = {}
        self.levels = np.unique(form.GRID)
        fields = np.searchsorted(self.levels, form.GRID)
        fields <<= self.width * (np.arange(fields.shape[1]) % (fields.shape[1] // 2))
        self.tables = [half.sum(axis=1) for half in np.split(fields, 2, axis=1)]
        self.together = 2 if len(fields) >= 1024 else 1
        # The entries of IQ1 are sorted by their last values first.
        self.steps = _Steps(self.tables.pop()) if len(fields) > 1024 else None

    def codes(self, block: int, word: int) -> Lanes:
        fields = self._halves(block, word) if self.width == 2 else self._pairs(block, word)
        entries = [int(v) + self.form.OFFSET for v in self.levels] + [0] * ((1 << self.width) - len(self.levels))
        found = _call("avx512.permvar.qi", _bytes(fields, entries * (64 // len(entries))), fields)
        signs = self._keep(("signs", block, 0), lambda: self.form.signs(self.form.fields, block))
        return self.form.signed(found, signs, word)

    def ready(self) -> None:
        return None

    def _keep(self, key: tuple[str, int, int], make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept = {k: v for k, v in self.kept.items() if k[1] >= key[1]} | {key: make()}
        return self.kept[key]

    def _planes(self, block: int, part: int) -> list[Lanes]:
        if ("planes", block, part) not in self.kept:
            blocks = range(block, block + self.together)
            indices = [self.form.indices(self.form.fields, b, part) for b in blocks]
            bits = len(self.form.GRID).bit_length() - 1
            upper = [[_bit(low, 7)] + [_bit(high, i) for i in range(bits - 8)] for low, high in indices]
            planes = [_lookup(table, [low for low, _ in indices], upper) for table in self.tables]
            if self.steps:
                planes.append([self.steps.find(low, high) for low, high in indices])
            self.kept |= {("planes", b, part): found for b, *found in zip(blocks, *planes, strict=True)}
        return self.kept["planes", block, part]

    def _halves(self, block: int, word: int) -> Lanes:
        """Entries of 8: four fields of 2 bits in byte word // 2 of either plane."""
        plane = self._planes(block, 0)[word % 2]
        return _call("avx512.pmultishift.qb", _bytes(plane, _shifts(8 * (word // 2), 2)), plane)

    def _pairs(self, block: int, word: int) -> Lanes:
        """Entries of 4: two fields of 3 bits in byte word % 4 of each plane; first side by side for two words."""
        a, b = self._planes(block, word // 4)
        first = word % 4 // 2 * 2
        order = [4 * lane + first + i + 64 * plane for lane in range(16) for i in range(2) for plane in range(2)]
        both = self._keep(("pairs", block, word // 2), lambda: _call("avx512.vpermi2var.qi", a, _bytes(a, order), b))
        shifts = [s + 8 * (word % 2 * 2) for lane in range(16) for s in [32 * (lane % 2) + v for v in (0, 3, 8, 11)]]
        return _call("avx512.pmultishift.qb", _bytes(both, shifts), both)
