"""Weights from the file into an arena: read and rearranged by all threads of the pool, window by window."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np

from cpu_kernels import Matrix, Pool
from cpu_kernels.weight_file import ReadError, in_order, read_units, units, working_memory
from hetero.arena import Slot, place, stretches
from hetero.errors import FileError
from hetero.gguf import GGUFFile
from hetero.page_cache import drop
from hetero.reading_order import reading_order

STAGE = "reading weights"
WINDOW_UNITS = 16  # MiB for each thread: what is read between two looks at the keyboard
FILE, OFFSET, BYTES = range(3)  # columns of a table of units


class WeightReader:
    """Fills an arena. `kept`: how many bytes of the files may stay in the page cache, the last ones.

    Pages before them are dropped as they are consumed. Were the first ones kept, the arena would grow at the cost of
    cached pages that are still to be read.
    """

    def __init__(self, file: GGUFFile, slots: list[Slot], pool: Pool, kept: int):
        self.file, self.slots, self.pool, self.kept = file, slots, pool, kept

    def fill(self, arena: np.ndarray, progress: Callable[[str, int, int], None]) -> Iterator[int]:
        """Yields the bytes of the file read so far. FileError where reading fails."""
        with self.file.descriptors() as descriptors:
            table, matrices = self._table(arena, descriptors)
            work = working_memory(self.pool, table)
            done, total = 0, int(table[:, BYTES].sum())
            progress(STAGE, 0, total)
            starts = np.flatnonzero(table[:, BYTES])[:: WINDOW_UNITS * self.pool.threads]
            windows = np.split(table, starts[1:])
            before = np.cumsum([0, *(int(window[:, BYTES].sum()) for window in windows)])
            with closing(reading_order([extent(window) for window in windows])) as order:
                for i in order:
                    self._read(windows[i], descriptors, work, matrices)
                    if before[i] < total - self.kept:
                        for part in extent(windows[i]):
                            drop(*part)
                    done += int(before[i + 1] - before[i])
                    progress(STAGE, done, total)
                    yield done

    def _table(self, arena: np.ndarray, descriptors: list[int]) -> tuple[np.ndarray, list[Matrix]]:
        """All units, and the matrices that they refer to by address."""
        tensors, tables, matrices = place(self.slots, arena), [], list[Matrix]()
        for slot in self.slots:
            source, target = slot.tensor, tensors[slot.name].data
            file = descriptors[source.file]
            if slot.layout != "x16":
                tables.append(units(file, source.offset, None, target))
                continue
            rows, done = source.data.reshape(-1, *source.data.shape[-2:]), 0
            for first, end in stretches(slot.experts or range(len(rows))):
                matrix = Matrix(rows[first:end], source.type, source.shape[-1])
                matrices.append(matrix)
                offset, part = source.offset + first * rows.strides[0], target[done : done + end - first]
                tables.append(units(file, offset, matrix, part, slot.column))
                done += end - first
        return in_order(np.concatenate(tables)), matrices

    def _read(self, window: np.ndarray, descriptors: list[int], work: np.ndarray, matrices: list[Matrix]) -> None:
        read(self.file, self.pool, descriptors, window, work, matrices)


def read(
    file: GGUFFile, pool: Pool, descriptors: list[int], table: np.ndarray, work: np.ndarray, matrices: list[Matrix]
) -> None:
    """The units of a table, of an open file. FileError where reading fails."""
    try:
        read_units(pool, table, work, matrices)
    except ReadError as error:
        path = file.paths[descriptors.index(int(table[error.unit, FILE]))]
        reason = os.strerror(error.errno) if error.errno else "it ends before its last tensor"
        remedy = "check the disk, and that nobody is writing to the file"
        raise FileError(f"{path} cannot be read: {reason}", "it was longer when it was opened", remedy) from error


def extent(window: np.ndarray) -> list[tuple[int, int, int]]:
    """What these units are read from: (descriptor, offset, bytes) for each file."""
    parts = []
    for file in np.unique(window[:, FILE]):
        rows = window[window[:, FILE] == file]
        start, end = int(rows[:, OFFSET].min()), int((rows[:, OFFSET] + rows[:, BYTES]).max())
        parts.append((int(file), start, end - start))
    return parts
