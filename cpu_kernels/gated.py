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
        """For the pool's nodes; views of matrices in the layout of the file. `turn`: of the node that a single network
        goes to if it cannot be cut, for instance the layer."""
        _check_shapes(Part(gate, up, down), gate.columns)
        nodes = len(pool.nodes)
        if nodes == 1:
            return cls([Part(gate, up, down)])
        ranges = hidden_ranges(pool, gate.rows, down.type)
        if ranges:
            return cls(Part(_rows(gate, *r), _rows(up, *r), _columns(down, *r)) for r in ranges)
        firsts = [(node - turn) % nodes for node in range(nodes)]
        return cls(_whole((gate, up, down), first, nodes) if first < gate.count else None for first in firsts)

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


def _stack(w: Matrix) -> np.ndarray:
    if w.layout != "gguf":
        raise ValueError(f"matrices are split in the layout of the file, not in {w.layout}")
    return w.data if w.data.ndim == 3 else w.data[None]


def _rows(w: Matrix, low: int, high: int) -> Matrix:
    return Matrix(_stack(w)[:, low:high], w.type, w.columns)


def _columns(w: Matrix, low: int, high: int) -> Matrix:
    form = load_format(w.type).FORMAT
    first, last = (at // form.VALUES * form.BYTES for at in (low, high))
    return Matrix(_stack(w)[:, :, first:last], w.type, high - low)


def _whole(network: tuple[Matrix, Matrix, Matrix], first: int, step: int) -> Part:
    gate, up, down = (Matrix(_stack(w)[first::step], w.type, w.columns) for w in network)
    return Part(gate, up, down, first, step)
