"""Memory for results, handed out again when nobody holds it any more.

A prompt's results have tens of megabytes each. The allocator of the C library maps such memory anew each time, and the
kernel clears it page by page: 3 to 15 % of the time of a prompt's pass on a virtual machine.
"""

from math import prod

import numpy as np

from .pages import allocate

LEAST = 1 << 18  # bytes; what is smaller stays with the C library, which keeps it
WASTE = 2  # a result gets memory of at most so many times its size
SLACK = 1.5  # all that is held is at most so many times what was in use at once


class Lease:
    """Memory in use: arrays that lie in it hold this, and it gives the memory back when the last of them is gone."""

    def __init__(self, memory: np.ndarray, owner: "Recycler"):
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._owner = memory, owner

    def __del__(self) -> None:
        self._owner.take_back(self._memory)


class Recycler:
    """`empty(shape)`: as numpy's, float32; 2 MiB-aligned where it is large."""

    def __init__(self) -> None:
        self._free: dict[int, np.ndarray] = {}  # by identity, longest unused first
        self._used = self._most = 0  # bytes

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        size = 4 * prod(shape)
        if size < LEAST:
            return np.empty(shape, np.float32)
        memory = self._taken(size)
        if memory is None:
            self._forget(size)
            memory, _ = allocate(size)
        self._used += memory.nbytes
        self._most = max(self._most, self._used)
        return np.asarray(Lease(memory, self))[:size].view(np.float32).reshape(shape)

    def _taken(self, size: int) -> np.ndarray | None:
        """The smallest free memory that fits."""
        fitting = [memory for memory in tuple(self._free.values()) if size <= memory.nbytes <= WASTE * size]
        return self._free.pop(id(min(fitting, key=lambda memory: memory.nbytes))) if fitting else None

    def take_back(self, memory: np.ndarray) -> None:
        self._used -= memory.nbytes
        self._free[id(memory)] = memory
        self._forget(0)

    def _forget(self, wanted: int) -> None:
        """Frees what was not used for longest, so that with `wanted` bytes more not too much is held."""
        held = self._used + wanted + sum(memory.nbytes for memory in tuple(self._free.values()))
        most = max(self._most, self._used + wanted)
        for oldest in tuple(self._free):
            if held <= SLACK * most:
                break
            held -= self._free.pop(oldest).nbytes
