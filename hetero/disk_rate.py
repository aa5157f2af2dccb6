"""How fast the disk under a file reads: a bounded sample of it, past the page cache where the system allows it."""

import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

from hetero.page_cache import cached_bytes, drop

REQUEST_BYTES, IN_FLIGHT = 4 << 20, 16
SAMPLE_BYTES, LEAST_BYTES = 512 << 20, 32 << 20
MOST_SECONDS = 2.0


def disk_rate(path: Path, clock: Callable[[], float] = perf_counter) -> float | None:
    """Bytes per second, many requests at a time; None where the file is small, or cannot be read."""
    try:
        size = path.stat().st_size
        if size < LEAST_BYTES:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            return _read(descriptor, size, clock)
        except OSError:  # this file system has no O_DIRECT
            os.close(descriptor)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return _read(descriptor, size, clock, forget=True)
        finally:
            os.close(descriptor)
    except OSError:
        return None


def _read(descriptor: int, size: int, clock: Callable[[], float], forget: bool = False) -> float:
    requests = _sample(descriptor, size)
    if forget:
        for at in requests:
            drop(descriptor, at, REQUEST_BYTES)
    started = clock()

    def read(which: int) -> int:
        with mmap.mmap(-1, REQUEST_BYTES) as buffer:  # O_DIRECT wants whole pages
            done = 0
            for at in requests[which::IN_FLIGHT]:
                if clock() - started < MOST_SECONDS:
                    done += os.preadv(descriptor, [buffer], at)
            return done

    with ThreadPoolExecutor(IN_FLIGHT) as executor:
        done = sum(executor.map(read, range(IN_FLIGHT)))
    return done / max(clock() - started, 1e-9)


def _sample(descriptor: int, size: int) -> list[int]:
    """Where to read, all over the file, from what is not in the page cache if there is enough of it."""
    every = list(range(0, size - REQUEST_BYTES + 1, REQUEST_BYTES))
    missing = [at for at in every if not cached_bytes(descriptor, at, REQUEST_BYTES)]
    found, count = missing if len(missing) >= IN_FLIGHT else every, SAMPLE_BYTES // REQUEST_BYTES
    return found[:: -(-len(found) // count)]
