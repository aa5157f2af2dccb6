"""Gated: networks down · (SiLU(gate x) * up x), single ones or a stack of experts, split over the nodes of a pool.

E experts, K columns, F rows of gate and up. Each node has the rows [low, high) of every expert's gate and up, and the
same columns of down: it computes its own hidden values, and from them a share of the result. Shares are added once.
Where F has fewer blocks than there are nodes, networks are not cut: they are dealt out whole, one by one.
"""

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import numpy as np

from .arrange import interleave
from .machine import LANES
from .matrix import Matrix, address, load_format, row_groups
from .pages import Placement, allocate
from .pool import Pool
from .topology import shares

BLOCK = 32  # hidden values that are quantized together

# Fields of a part for compiled code: descriptors (0: it has none), and which experts it holds: FIRST, FIRST + STEP, ...
GATE, UP, DOWN, FIRST, STEP = range(0, 40, 8)
PART_BYTES = 40


class Part(NamedTuple):
    """A node's gate and up [E', F', K], and down [E', K, F'], of the experts first, first + step, ..."""

    gate: Matrix
    up: Matrix
    down: Matrix
    first: int = 0
    step: int = 1


class Cut(NamedTuple):
    """Of the experts first, first + step, ... the hidden values low <= i < high."""

    first: int
    step: int
    low: int
    high: int


class Gated:
    """One part for each node of a pool, None for those that hold nothing; or a single one, for a pool of any nodes."""

    __slots__ = ("address", "columns", "count", "fields", "hidden", "matrices", "parts")

    def __init__(self, parts: Iterable[Part | None]):
        self.parts = tuple(parts)
        held = [part for part in self.parts if part is not None]
        for part in held:
            _check_shapes(part, held[0].gate.columns)
        self.columns = held[0].gate.columns
        self.count = sum(part.gate.count for part in held) if held[0].step > 1 else held[0].gate.count
        self.hidden = max(part.gate.rows for part in held)  # of the largest part
        self.matrices = [matrix for part in held for matrix in part[:3]]
        rows = [[*(w.address for w in part[:3]), *part[3:]] if part else [0] * 5 for part in self.parts]
        self.fields = np.array(rows, np.int64)
        self.address = address(self.fields)

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in self.matrices)

    @classmethod
    def split(cls, pool: Pool, gate: Matrix, up: Matrix, down: Matrix, turn: int = 0) -> "Gated":
        """For the pool's nodes: views of matrices in the layout of the file. `turn`: as for `cuts`."""
        _check_shapes(Part(gate, up, down), gate.columns)
        if len(pool.nodes) == 1:
            return cls([Part(gate, up, down)])
        parts = list[Part | None]()
        for cut in cuts(pool, gate.count, gate.rows, down.type, turn):
            views = (_cut(gate, cut), _cut(up, cut), _cut(down, cut, True)) if cut else None
            parts.append(Part(*views, cut.first, cut.step) if cut and views else None)
        return cls(parts)

    def interleaved(self, pool: Pool) -> "tuple[Gated, list[Placement]]":
        """In the layout x16 and in memory of each part's node; and what became of that memory."""
        placements, parts = list[Placement](), list[Part | None]()
        homes = [node.id for node in pool.nodes] if len(self.parts) > 1 else [None]
        for part, home in zip(self.parts, homes, strict=True):
            made = list[Matrix]()
            for w in part[:3] if part else ():
                shape = w.count, row_groups(w.rows), LANES * w.row_bytes
                memory, placement = allocate(prod(shape), home)
                made.append(interleave(pool, w, memory.reshape(shape)))
                placements.append(placement)
            parts.append(Part(made[0], made[1], made[2], part.first, part.step) if part else None)
        return Gated(parts), placements


def _check_shapes(part: Part, columns: int) -> None:
    shapes = [(w.count, w.rows, w.columns) for w in part[:3]]
    count, hidden, _ = shapes[0]
    if shapes != [(count, hidden, columns), (count, hidden, columns), (count, columns, hidden)]:
        raise ValueError(
            f"gate, up and down are (count, rows, columns) {shapes}; up must be like gate, down its transpose"
        )


def hidden_ranges(pool: Pool, hidden: int, down: str) -> list[tuple[int, int]]:
    """Each node's [low, high) of so many hidden values, in proportion to its threads; [] where they are too few.

    Multiples of what is quantized together, and of a block of down's type; the last range takes what is left.
    """
    block = max(BLOCK, load_format(down).FORMAT.VALUES)
    blocks, threads = hidden // block, node_threads(pool)
    if blocks < len(threads):
        return []
    ends = np.cumsum(shares(blocks, threads)) * block
    ends[-1] = hidden
    return list(zip([0, *map(int, ends[:-1])], map(int, ends), strict=True))


def node_threads(pool: Pool) -> list[int]:
    return [pool.node_of_thread.count(node) for node in range(len(pool.nodes))]


def cuts(pool: Pool, experts: int, hidden: int, down: str, turn: int = 0) -> list[Cut | None]:
    """What each node gets of such networks, None for nothing.

    `turn`: of the node that is first where they are dealt out whole; for instance the number of the layer.
    """
    ranges = hidden_ranges(pool, hidden, down)
    if ranges:
        return [Cut(0, 1, low, high) for low, high in ranges]
    nodes = len(pool.nodes)
    firsts = [(node - turn) % nodes for node in range(nodes)]
    return [Cut(first, nodes, 0, hidden) if first < experts else None for first in firsts]


def cut_bytes(data: np.ndarray, type: str, cut: Cut, down: bool) -> tuple[np.ndarray, int]:
    """A view of weights in the layout of the file, uint8 [experts, rows, row bytes]; and where in a row it begins.

    `down`: the hidden values are its columns, not its rows.
    """
    form, data = load_format(type).FORMAT, data[cut.first :: cut.step]
    if not down:
        return data[:, cut.low : cut.high], 0
    first, end = (at // form.VALUES * form.BYTES for at in (cut.low, cut.high))
    return data[:, :, first:end], first


def _cut(w: Matrix, cut: Cut, down: bool = False) -> Matrix:
    if w.layout != "gguf":
        raise ValueError(f"matrices are split in the layout of the file, not in {w.layout}")
    data, _ = cut_bytes(w.data if w.data.ndim == 3 else w.data[None], w.type, cut, down)
    return Matrix(data, w.type, cut.high - cut.low if down else w.columns)
