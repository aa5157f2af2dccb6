"""The page cache under a file: what lies in it, reading more of it in without waiting, dropping what was used."""

import ctypes
import mmap
import os

import numpy as np

STEP_BYTES = 1 << 20  # of one request: the kernel cuts larger ones off at a few hundred KiB to some MiB
MAP_BYTES = 1 << 30  # looked at together: a byte for each page
_mincore = ctypes.CDLL(None, use_errno=True).mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def cached_bytes(descriptor: int, start: int, size: int) -> int:
    """How many of these bytes of an open file are in the page cache, in whole pages at either end.

    The kernel says "all" of a file that belongs to another user and that this one may not write. OSError where the file
    cannot be mapped, or does not reach so far.
    """
    first, end, found = start - start % mmap.PAGESIZE, start + size, 0
    for at in range(first, end, MAP_BYTES):
        found += _resident_pages(descriptor, at, min(MAP_BYTES, end - at))
    return min(size, found * mmap.PAGESIZE)


def _resident_pages(descriptor: int, start: int, size: int) -> int:
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ, offset=start) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        resident = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        failed = _mincore(view.ctypes.data, size, resident.ctypes.data)
        del view  # before the mapping goes
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return int(np.count_nonzero(resident & 1))


def read_ahead(descriptor: int, start: int, size: int) -> None:
    """Has the kernel read these bytes in; returns when all is asked for."""
    for at in range(start, start + size, STEP_BYTES):
        os.posix_fadvise(descriptor, at, min(STEP_BYTES, start + size - at), os.POSIX_FADV_WILLNEED)


def drop(descriptor: int, start: int, size: int) -> None:
    os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)
