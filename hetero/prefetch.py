"""Asking the kernel to read mapped weights before they are needed, without waiting for it."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from hetero.page_cache import read_ahead

Range = tuple[Path, int, int]  # file, offset, bytes


def prefetch(ranges: Iterable[Range]) -> threading.Thread:
    """A thread that goes through the ranges and ends. What cannot be read is left to whoever needs it."""
    thread = threading.Thread(target=_read_ahead, args=(list(ranges),), name="prefetch", daemon=True)
    thread.start()
    return thread


def _read_ahead(ranges: list[Range]) -> None:
    for path, start, size in ranges:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            read_ahead(descriptor, start, size)
        except OSError:
            return
        finally:
            os.close(descriptor)
