"""What of a file is in the page cache, and the order in which a file is read because of that."""

import mmap
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest

from hetero import reading_order as order
from hetero.page_cache import cached_bytes, drop, read_ahead

MiB = 1 << 20


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    """Of a file of 3 MiB and 5 bytes that lies on the disk."""
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(3 * MiB + 5))
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)


def drop_or_skip(descriptor: int, start: int, size: int) -> None:
    drop(descriptor, start, size)
    if cached_bytes(descriptor, start, size):
        pytest.skip("this file system keeps its files in memory")


@pytest.mark.parametrize("part", [1 << 30, 64 << 10])
def test_what_is_cached(part: int, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetero.page_cache.MAP_BYTES", part)
    assert cached_bytes(descriptor, 0, 3 * MiB + 5) == 3 * MiB + 5, "it was written just now"
    assert cached_bytes(descriptor, 100, 3 * MiB - 200) == 3 * MiB - 200
    drop_or_skip(descriptor, 0, 3 * MiB + 5)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # one page at a time
    os.pread(descriptor, 1, MiB + 10)
    assert cached_bytes(descriptor, 0, 3 * MiB) == mmap.PAGESIZE
    assert cached_bytes(descriptor, MiB + 100, 50) == 50, "within the page"
    assert cached_bytes(descriptor, MiB + mmap.PAGESIZE, MiB) == 0


def test_read_ahead(descriptor: int) -> None:
    drop_or_skip(descriptor, 0, 3 * MiB + 5)
    read_ahead(descriptor, MiB, 2 * MiB + 5)
    until = monotonic() + 20
    while cached_bytes(descriptor, MiB, 2 * MiB + 5) < 2 * MiB + 5:
        assert monotonic() < until
        sleep(0.01)


def test_a_file_cut_short(descriptor: int) -> None:
    os.truncate(descriptor, MiB)
    with pytest.raises(ValueError, match="length"):
        cached_bytes(descriptor, 0, 2 * MiB)
    assert order.is_cached([(descriptor, 0, 2 * MiB)]), "who reads it meets the error"


class Disk:
    """Windows (0, i, 1) of a file. What is asked of it is in `asked`, and in the page cache once `serve` was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cached: set[int]):
        self.cached, self.asked = cached, queue.Queue[int]()
        monkeypatch.setattr(order, "cached_bytes", lambda file, start, size: size if start in self.cached else 0)
        monkeypatch.setattr(order, "read_ahead", lambda file, start, size: self.asked.put(start))

    def serve(self) -> int:
        self.cached.add(window := self.asked.get(timeout=20))
        return window


def windows(count: int) -> list[list[tuple[int, int, int]]]:
    return [[(0, i, 1)] for i in range(count)]


def test_what_is_cached_fills_the_time_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, cached={2, 3, 5})
    with closing(order.reading_order(windows(6))) as found:
        assert next(found) == 2
        assert next(found) == 3
        assert disk.serve() == 0
        assert next(found) == 0, "as soon as it is there"
        assert disk.serve() == 1
        assert [*found] == [1, 5, 4], "the last one is waited for where it is read"


@pytest.mark.parametrize("cached", [set(), {0, 1, 2, 3}])
def test_in_the_order_of_the_file_where_all_is_cached_or_nothing(cached: set[int], monkeypatch) -> None:
    Disk(monkeypatch, cached)
    assert [*order.reading_order(windows(4))] == [0, 1, 2, 3]


def test_the_disk_is_asked_for_so_much_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "AHEAD_BYTES", 3)
    disk = Disk(monkeypatch, cached=set())
    for used, i in enumerate(order.reading_order(windows(20))):
        assert i == used
        while disk.asked.qsize() < min(20, used + 3):
            sleep(0.001)
        assert disk.asked.qsize() <= used + 3


def test_a_disk_that_fails_ends_the_reading_ahead_only(monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, cached={1})

    def fail(*part: int) -> None:
        raise OSError

    monkeypatch.setattr(order, "read_ahead", fail)
    assert sorted(order.reading_order(windows(4))) == [0, 1, 2, 3]


def test_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, cached=set())
    with closing(order.reading_order(windows(100))) as found:
        next(found)
    assert "read ahead" not in {thread.name for thread in threading.enumerate()}
