"""How every kernel here is compiled: the flags in one place. Import this module before numba."""

from contextlib import suppress

import numba
from numba import cfunc, njit, types

from . import code_cache

CACHE_DIRECTORY = code_cache.directory()
_COMPLETE = CACHE_DIRECTORY / "complete"
CACHED = _COMPLETE.exists()  # an earlier process has compiled the kernels of a whole model here
numba.config.CACHE_DIR = str(CACHE_DIRECTORY)

# C signatures. A pool job: (address of its int64 arguments, index of this thread, number of threads).
# An entry, the native part of a verb: (address of the pool's control block, address of its int64 arguments).
JOB = types.void(types.int64, types.int64, types.int64)
ENTRY = types.void(types.int64, types.int64)
HANDLER = types.void(types.int32, types.int64, types.int64)
HOST_FUNCTION = types.void(types.int64)  # of a CUDA stream: (its user data)


def note_compiled() -> None:
    """A model has run: from now on its kernels come from the cache."""
    with suppress(OSError):
        _COMPLETE.touch()


def kernel(function):
    """Compile for nopython, without the GIL, without bounds checks; cached on disk."""
    return njit(nogil=True, error_model="numpy", boundscheck=False, cache=True)(function)


def exact_kernel(signature: str):
    """As `kernel`, for arguments of these types only: others are a TypeError, not one more compilation."""
    return njit(signature, nogil=True, error_model="numpy", boundscheck=False, cache=True)


def fast_kernel(function):
    """As `kernel`, and sums may be reassociated and contracted, so that LLVM can vectorize them; NaN stays."""
    return njit(
        nogil=True, error_model="numpy", boundscheck=False, cache=True, fastmath={"reassoc", "contract", "nsz"}
    )(function)


_NAMES: dict[int, str] = {}  # of jobs and entries, by address: for the message when one dies


def name_of(address: int) -> str:
    return _NAMES.get(address, f"at {address:#x}")


def _callback(signature, function):
    made = cfunc(signature, nopython=True, cache=True, error_model="numpy", boundscheck=False)(function)
    _NAMES[made.address] = f"{function.__module__}.{function.__qualname__}"
    return made


def job(function):
    """A function with C linkage and the signature `JOB`; `.address` is what the pool calls, on every thread.

    Hand the address to a kernel as an argument: as a global it would be frozen into the kernel's cached machine code.
    """
    return _callback(JOB, function)


def entry(function):
    """A function with C linkage and the signature `ENTRY`, which `Pool.call` runs on the caller; it dispatches jobs."""
    return _callback(ENTRY, function)


def handler(function):
    """A signal handler."""
    return _callback(HANDLER, function)


def host_function(function):
    """What a thread of the GPU's driver calls, `.address`: it never takes the GIL."""
    return _callback(HOST_FUNCTION, function)


def device(function):
    """A small function inlined into the kernels that use it; not cached by itself."""
    wrappers = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # Python never calls it: half the compile time
    return njit(nogil=True, error_model="numpy", boundscheck=False, forceinline=True, **wrappers)(function)


# The two kernels of every weight format, called by address so that drivers need not know the format:
# multiply(weights, groups, blocks, columns, x_list, y_list, y_offset) and dequantize(weights, blocks, target, stride).
_MULTIPLY = types.void(*[types.int64] * 7)
_DEQUANTIZE = types.void(*[types.int64] * 4)


def multiply_kernel(function):
    """16-row groups times some columns (tile.py)."""
    return cfunc(_MULTIPLY, nopython=True, cache=True, error_model="numpy", boundscheck=False)(function)


def dequantize_kernel(function):
    """One 16-row group as float32 rows (tile.py)."""
    return cfunc(_DEQUANTIZE, nopython=True, cache=True, error_model="numpy", boundscheck=False)(function)
