"""The threads of torch and of BLAS, kept at one while a pool lives: two that spin in one process wreck each other.

Only what is loaded when the first pool is made: a library loaded later starts with its own number of threads.
"""

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# (part of the library's file name, setter, getter); OpenBLAS is built under several prefixes and suffixes.
_SETTERS = [
    ("blas", f"{prefix}_set_num_threads{suffix}", f"{prefix}_get_num_threads{suffix}")
    for prefix in ("scipy_openblas", "openblas")
    for suffix in ("", "64_", "_64", "64")
] + [
    ("mkl_rt", "MKL_Set_Num_Threads", "MKL_Get_Max_Threads"),
    ("blis", "bli_thread_set_num_threads", "bli_thread_get_num_threads"),
]

_lock = threading.Lock()
_pools = 0
_undo: list[Callable[[], object]] = []


def hold() -> None:
    """A pool begins."""
    global _pools
    with _lock:
        _pools += 1
        if _pools == 1:
            _undo.extend(_set_to_one())


def release() -> None:
    """A pool has ended; the last one restores what the first one found."""
    global _pools
    with _lock:
        _pools -= 1
        while not _pools and _undo:
            _undo.pop()()


def _set_to_one() -> list[Callable[[], object]]:
    undo: list[Callable[[], object]] = []
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "set_num_threads"):  # not while it is being imported
        undo.append(partial(torch.set_num_threads, torch.get_num_threads()))
        torch.set_num_threads(1)
    for library, setter, getter in blas_libraries():
        undo.append(partial(getattr(library, setter), getattr(library, getter)()))
        getattr(library, setter)(1)
    return undo


def blas_libraries() -> list[tuple[ctypes.CDLL, str, str]]:
    """Those in this process, with the names of the functions that set and get the number of threads."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if ".so" in line and len(line.split(maxsplit=5)) == 6}
    found = []
    for path in sorted(paths):
        for part, setter, getter in _SETTERS:
            if part not in Path(path).name:
                continue
            try:
                library = ctypes.CDLL(path)
            except OSError:  # the file has been replaced since
                break
            if hasattr(library, setter) and hasattr(library, getter):
                found.append((library, setter, getter))
                break
    return found
