"""Recorded calls of a pool's entries, to be run again in one native call; and the working memory they share."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .control import run_entries
from .faults import watch_exceptions

if TYPE_CHECKING:
    from .pool import Pool

_STEP = 1 << 20  # scratch grows by whole MiB


def aligned(size: int) -> tuple[np.ndarray, int]:
    """Zeroed memory and a 64-byte aligned address inside it."""
    memory = np.zeros(size + 64, np.uint8)
    return memory, -(-memory.ctypes.data // 64) * 64


class Scratch:
    """Working memory that only grows. A buffer that became too small is freed, or kept for those who know it."""

    def __init__(self, *, keep: bool):
        self._keep = keep
        self._buffers: list[np.ndarray] = []
        self._address = self._size = 0

    def address(self, size: int) -> int:
        """Of at least `size` bytes, 64-byte aligned."""
        if size > self._size:
            self._size = -(-size // _STEP) * _STEP
            memory, self._address = aligned(self._size)
            self._buffers = [*self._buffers, memory] if self._keep else [memory]
        return self._address


class Program:
    """Entries in the order in which they were called, with all that they read and write kept alive.

    Made by `Pool.record`. The arrays of arguments are the recorded ones, not copies: an array belongs to one call.
    """

    def __init__(self, pool: "Pool"):
        self._pool, self._calls = pool, list[tuple[int, int]]()
        self._kept: list[Any] = []
        self._table: np.ndarray | None = None
        self.scratch = Scratch(keep=True)

    def __len__(self) -> int:
        return len(self._calls)

    def append(self, entry: int, arguments: np.ndarray, keep: tuple[Any, ...]) -> None:
        self._calls.append((entry, arguments.ctypes.data))
        self._kept.append((arguments, keep))

    def finish(self) -> None:
        self._table = np.array(self._calls, np.int64).reshape(-1, 2)

    @property
    def entries(self) -> np.ndarray:
        """int64 [n, 2]: (address of an entry, address of its arguments). RuntimeError for half a record."""
        if self._table is None:
            raise RuntimeError("this Program is not recorded to its end")
        return self._table

    def replay(self) -> None:
        """Run every recorded entry, in order, in one native call.

        Raises RuntimeError for a closed or busy pool and for half a record, WorkerFault where a kernel died.
        """
        entries = self.entries
        watch_exceptions()
        self._pool.check(run_entries(self._pool.control, entries))
