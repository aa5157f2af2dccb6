"""In which order windows of files are read: what is in the page cache while the disk fetches the rest."""

import threading
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress

from hetero.page_cache import cached_bytes, read_ahead

AHEAD_BYTES = 512 << 20  # asked of the disk and not used yet: some queues full, little memory
Window = Sequence[tuple[int, int, int]]  # (descriptor, offset, bytes) of an open file


def reading_order(windows: Sequence[Window]) -> Generator[int, None, None]:
    """Yields the index of each window once. The next one is asked for when the window has been used.

    Windows that the disk has to read come in their order as soon as they are in the page cache; those that were there
    fill the time until then. Close the generator before the files.
    """
    cached, missing = deque[int](), deque[int]()
    for i, window in enumerate(windows):
        (cached if is_cached(window) else missing).append(i)
    ahead = ReadAhead([windows[i] for i in missing])
    try:
        while cached or missing:
            if missing and (not cached or is_cached(windows[missing[0]])):
                yield missing.popleft()
                ahead.used()
            else:
                yield cached.popleft()
    finally:
        ahead.close()


def is_cached(window: Window) -> bool:
    """True also where nobody can say: then the window is read like any other."""
    with suppress(OSError, ValueError):  # the file is shorter by now, say: reading it ends in an error of its own
        return all(cached_bytes(*part) == part[2] for part in window)
    return True


class ReadAhead:
    """A thread that has the kernel read windows, one after the other, AHEAD_BYTES before they are used."""

    def __init__(self, windows: Sequence[Window]):
        largest = max((sum(size for *_, size in window) for window in windows), default=1)
        self._room = threading.Semaphore(max(2, AHEAD_BYTES // max(1, largest)))
        self._windows, self._closed = windows, False
        self._thread = threading.Thread(target=self._read, name="read ahead", daemon=True)
        if windows:
            self._thread.start()

    def _read(self) -> None:
        with suppress(OSError):  # who needs the bytes will meet the error, and say it
            for window in self._windows:
                self._room.acquire()
                if self._closed:
                    return
                for part in window:
                    read_ahead(*part)

    def used(self) -> None:
        """One more window was."""
        self._room.release()

    def close(self) -> None:
        self._closed = True
        self._room.release()
        if self._windows:
            self._thread.join()
