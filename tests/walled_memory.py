"""Memory that ends where a forbidden page begins, so that whoever reads or writes past its end is caught."""

import ctypes
import mmap

import numpy as np


def before_a_forbidden_page(array: np.ndarray) -> np.ndarray:
    """A copy whose last byte is the last one that may be touched: anything beyond ends the process, or the Pool."""
    size = -(-max(1, array.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    forbidden = ctypes.c_void_p(whole.ctypes.data + size)
    assert ctypes.CDLL(None).mprotect(forbidden, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copy = whole[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class WalledScratch:
    """In place of a Pool's working memory: anew for each call, not a cache line longer than asked for, of ones: bytes
    that nobody has written show as NaN or as addresses where nothing is."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def address(self, size: int) -> int:
        self._memory = before_a_forbidden_page(np.full(-(-size // 64) * 64, 0xFF, np.uint8))
        return self._memory.ctypes.data
