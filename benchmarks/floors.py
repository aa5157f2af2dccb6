"""What bounds opening a model: how fast the disk reads and how fast the kernel hands out new memory."""

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

from cpu_kernels.pages import allocate
from hetero.page_cache import cached_bytes, drop

SAMPLE_BYTES, REGION_BYTES = 768 << 20, 64 << 20
REQUEST_BYTES, IN_FLIGHT = 4 << 20, 16  # of reads from the disk


def new_memory(size: int, threads: int) -> float:
    """Bytes per second at which the first touch of memory is served, by all threads, in huge pages where allowed."""
    memory, _ = allocate(size)
    parts = np.array_split(memory, threads)

    def touch(part: np.ndarray) -> None:
        part[:: mmap.PAGESIZE] = 1

    with ThreadPoolExecutor(threads) as executor:
        started = perf_counter()
        list(executor.map(touch, parts))
        return size / (perf_counter() - started)


def regions(path: Path) -> list[tuple[int, int]]:
    """(offset, bytes) of a sample of a file, spread over what is not in the page cache, or over all of it."""
    size = path.stat().st_size
    every = [(at, min(REGION_BYTES, size - at)) for at in range(0, size, REGION_BYTES)]
    with path.open("rb") as file:
        missing = [region for region in every if not cached_bytes(file.fileno(), *region)]
    found, count = missing or every, max(1, SAMPLE_BYTES // REGION_BYTES)
    return found[:: -(-len(found) // count)]


def disk(path: Path) -> float:
    """Bytes per second that the disk reads, many requests at a time, past the page cache where the system allows it."""
    sample = regions(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        descriptor = os.open(path, os.O_RDONLY)
        for region in sample:
            drop(descriptor, *region)
    requests = [at for start, size in sample for at in range(start, start + size, REQUEST_BYTES)]
    buffers = [mmap.mmap(-1, REQUEST_BYTES) for _ in range(IN_FLIGHT)]  # O_DIRECT wants whole pages
    for buffer in buffers:
        buffer.write(bytes(REQUEST_BYTES))

    def read(which: int) -> int:
        return sum(os.preadv(descriptor, [buffers[which]], at) for at in requests[which::IN_FLIGHT])

    try:
        with ThreadPoolExecutor(IN_FLIGHT) as executor:
            started = perf_counter()
            done = sum(executor.map(read, range(IN_FLIGHT)))
            return done / (perf_counter() - started)
    finally:
        os.close(descriptor)
