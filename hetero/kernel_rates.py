"""How fast the products with quantized weights are on this machine: they are called on random weights, and timed.

Weights are read from memory, as in a model: a stretch of it that is much larger than the caches, the same for all
types, is cut into matrices that are taken in turn. Up to 8 columns the calls are recorded and replayed, as the engine
does with few tokens. Matrices of a second size tell what a call costs whatever its size. No layer of a model is timed.
"""

from collections.abc import Callable
from functools import partial
from math import sqrt
from statistics import median
from typing import Literal, NamedTuple

import numpy as np

from cpu_kernels import Matrix, Pool, interleave, linear, linear_heads, routed_experts
from cpu_kernels.matrix import LANES
from cpu_kernels.pages import allocate
from hetero.quant_types import QUANT
from hetero.random_weights import random_rows
from hetero.stopwatch import Stopwatch
from placement.machine import LinearRate

Verb = Literal["linear", "heads", "experts", "mapped"]
# Far more than the caches hold, and more than the page tables of which they hold: on a virtual machine experts in 128
# MiB are read 8 to 10 % faster than those of a model, in 512 MiB or 4 GiB as fast. A sample reads one of the PARTS
ROTATED_BYTES, LEAST_ROTATED, PARTS = 512 << 20, 64 << 20, 4
# Tiles are of 8, 4, 2 and 1 columns, and weights pass once for each: 5 columns take much longer than 4, and 7 as long
# as 8. Experts see every small number of columns, others seldom; absorbed attention alone, of few tokens, needs heads
VERB_COLUMNS = {
    "experts": (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 64, 256),
    "linear": (1, 2, 4, 8, 16, 64, 256),
    "heads": (1, 8, 64),
    "mapped": (1, 8, 64),  # "linear" with weights as they are in the file
}
# A model's bytes are theirs, and decoding is one column: a sample reads everything, as long as the products of a token
# (a short one misses what interrupts a shared machine), three times, some time apart
MATTER = "experts", "linear"
MOST_COLUMNS, RECORDED = 256, 8
# Values of a row: so many that 256 columns do not fit into a core's own cache, as in a model. Rows of an expert's gate
WIDTH, HIDDEN = 4096, 2048
LARGE, SMALL = 8 << 20, 1 << 20  # bytes of a matrix
HEADS, FEW_HEADS = 128, 16
EXPERTS, SMALL_EXPERT, MOST_EXPERTS = 2, 256, 256  # of a call; rows of gate; in memory
PATTERN_GROUPS = 64


class Calls(NamedTuple):
    """Of one verb, each with the next matrices in memory."""

    weights: int  # of a call
    number: int  # of calls until the memory begins again
    bind: Callable[[int], Callable[[int], object]]  # columns -> what makes the i-th of the calls


class KernelRates:
    """Holds the memory; `rate(verb, type)` measures, up to so many columns."""

    def __init__(self, pool: Pool, stopwatch: Stopwatch, most: int = MOST_COLUMNS, nbytes: int = ROTATED_BYTES):
        self.pool, self.stopwatch, self.most = pool, stopwatch, most
        nodes = tuple(dict.fromkeys(node.id for node in pool.nodes))
        self._memory, _ = allocate(nbytes, nodes if len(nodes) > 1 else None)
        self._patterns = dict[tuple[str, bool], np.ndarray]()  # by type, interleaved or not
        self._pattern: tuple[str, bool] | None = None  # that fills the memory

    def rate(self, verb: Verb, type: str) -> LinearRate:
        make = {"linear": self._linear, "heads": self._heads, "experts": self._experts, "mapped": self._mapped}[verb]
        _, values, size = QUANT[type]
        large, small = make(type, True), make(type, False)
        parts, again = (1, 2) if verb in MATTER else (PARTS, 0)
        one = [self._time(large, 1, parts)]
        many = {columns: self._time(large, columns) for columns in VERB_COLUMNS[verb][1:] if columns <= self.most}
        few = self._time(small, 1)
        one += [self._time(large, 1, parts) for _ in range(again)]
        seconds = {1: median(one), **many}
        each = (seconds[1] - few) / (large.weights - small.weights)
        each = max(each, seconds[1] / large.weights / 4)  # whatever the noise: a large call takes longer
        call = max(0.0, few - small.weights * each)
        flops = tuple((c, 2 * c * large.weights / (spent - min(call, spent / 2))) for c, spent in seconds.items())
        return LinearRate(verb, type, size / values, call, flops)

    def _time(self, calls: Calls, columns: int, parts: int = PARTS) -> float:
        call = calls.bind(columns)
        every = [partial(call, i) for i in range(calls.number)]
        if columns <= RECORDED:
            return self.stopwatch.time_recorded(self.pool, every, parts)
        return self.stopwatch.time_in_turn(every)

    def _linear(self, type: str, large: bool) -> Calls:
        rows = self._rows(type, large)
        return self._products(rows, self._stacks(type, rows, WIDTH))

    def _mapped(self, type: str, large: bool) -> Calls:
        self._fill(type, interleaved=False)
        rows, row_bytes = self._rows(type, large), _row_bytes(type, WIDTH)
        count = len(self._memory) // (rows * row_bytes)
        data = self._memory[: count * rows * row_bytes].reshape(count, rows, row_bytes)
        return self._products(rows, [Matrix(each, type, WIDTH) for each in data])

    def _rows(self, type: str, large: bool) -> int:
        return LANES * max(1, (LARGE if large else SMALL) // (LANES * _row_bytes(type, WIDTH)))

    def _products(self, rows: int, matrices: list[Matrix]) -> Calls:
        def bind(columns: int) -> Callable[[int], object]:
            x, out = _columns(columns, WIDTH), np.empty((columns, rows), np.float32)
            return lambda i: linear(self.pool, matrices[i], x, out)

        return Calls(rows * WIDTH, len(matrices), bind)

    def _heads(self, type: str, large: bool) -> Calls:
        """W_uk's shape, or, where blocks are longer than its rows, W_uv's."""
        rows, width = (512, 128) if 128 % QUANT[type][1] == 0 else (128, 512)
        heads = HEADS if large else FEW_HEADS
        matrices = self._stacks(type, rows, width, heads)

        def bind(columns: int) -> Callable[[int], object]:
            x = _columns(columns, heads * width).reshape(columns, heads, width)
            out = np.empty((columns, heads, rows), np.float32)
            return lambda i: linear_heads(self.pool, matrices[i], x, out)

        return Calls(heads * rows * width, len(matrices), bind)

    def _experts(self, type: str, large: bool) -> Calls:
        """Networks of WIDTH columns, of which each call takes the next few, all its tokens the same ones."""
        hidden, used = (HIDDEN, EXPERTS) if large else (SMALL_EXPERT, 1)
        each = hidden * _row_bytes(type, WIDTH)
        room = min(MOST_EXPERTS, len(self._memory) // (3 * each))
        used = min(used, room)
        experts = room // used * used
        gate, up = (self._stack(type, i * experts * each, hidden, WIDTH, experts) for i in range(2))
        down = self._stack(type, 2 * experts * each, WIDTH, hidden, experts)

        def bind(columns: int) -> Callable[[int], object]:
            x, out = _columns(columns, WIDTH), np.empty((columns, WIDTH), np.float32)
            weights = np.ones((columns, used), np.float32)
            first, few = np.arange(0, experts, used, dtype=np.int32), np.arange(used, dtype=np.int32)
            ids = [np.tile(few + expert, (columns, 1)) for expert in first]
            return lambda i: routed_experts(self.pool, (gate, up, down), x, ids[i], weights, out=out)

        return Calls(3 * used * hidden * WIDTH, experts // used, bind)

    def _stacks(self, type: str, rows: int, width: int, count: int = 1) -> list[Matrix]:
        """As many as there is room for, `count` matrices each."""
        nbytes = count * rows * _row_bytes(type, width)
        starts = range(0, max(1, len(self._memory) // nbytes) * nbytes, nbytes)
        return [self._stack(type, start, rows, width, count) for start in starts]

    def _stack(self, type: str, start: int, rows: int, width: int, count: int = 1) -> Matrix:
        """Matrices that begin at this byte of the memory, which holds random weights of their type."""
        self._fill(type)
        shape = count, rows // LANES, LANES * _row_bytes(type, width)
        nbytes = shape[0] * shape[1] * shape[2]
        data = self._memory[start : start + nbytes].reshape(shape)
        return Matrix.x16(data, type, rows, width, flat=count == 1)

    def _fill(self, type: str, interleaved: bool = True) -> None:
        """Rows of another width have some scales where these have codes: finite or not, they take as long."""
        wanted = type, interleaved
        if wanted == self._pattern:
            return
        if wanted not in self._patterns:
            shape = LANES * PATTERN_GROUPS, WIDTH
            rows = random_rows(self.pool, np.random.default_rng(0), type, shape, 1 / sqrt(WIDTH))
            data = interleave(self.pool, Matrix(rows, type, WIDTH)).data if interleaved else rows
            self._patterns[wanted] = data.reshape(-1)
        pattern = self._patterns[wanted]
        whole = len(self._memory) // len(pattern)
        self._memory[: whole * len(pattern)].reshape(whole, -1)[:] = pattern
        self._memory[whole * len(pattern) :] = pattern[: len(self._memory) - whole * len(pattern)]
        self._pattern = wanted


def _row_bytes(type: str, columns: int) -> int:
    _, values, size = QUANT[type]
    return columns // values * size


def _columns(count: int, values: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, values), np.float32)
