"""How fast memory can be read: the ceiling under which speeds are shown.

Every thread reads memory of its own, which it was the first to touch (so that it lies on the thread's NUMA node), in
two streams of whole vectors and long runs. That is what was fastest of what was tried on 2 cores of a Zen 4 (medians
of interleaved runs): 1, 2, 4 or 8 streams, 256 or 512 bits, software prefetch of 0.5 to 4 KiB, and runs that the
threads take in turn, of which those of 64 KiB lose a fifth and those of 4 KiB more than half.
"""

from statistics import median
from time import perf_counter

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .atomic import load_i64, store_i64
from .jit import job
from .pool import Pool

SHARE_BYTES, LEAST_SHARE_BYTES = 512 << 20, 64 << 20  # of all threads together; of each of very many
WINDOW_BYTES = 16 << 20  # that a thread reads at a time: short enough for a quiet moment of a shared machine
STREAMS, _CHAINS, _STEP = 2, 8, 512  # of a thread; sums that do not wait for each other; bytes of a stream per round
_PAGE = 4096

_I32, _I64, _VECTOR = ir.IntType(32), ir.IntType(64), ir.VectorType(ir.IntType(32), 8)


@intrinsic
def _read_streams(typing, start, end, apart):
    """Read start..end, and as much at start + apart; multiples of _STEP. What was read, all of it combined."""

    def codegen(context, builder, signature, arguments):
        start, end, apart = arguments
        before = builder.block
        loop, after = (builder.function.append_basic_block(name) for name in ("read", "read.end"))
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.phi(_I64)
        chains = [builder.phi(_VECTOR) for _ in range(_CHAINS)]
        read = list(chains)
        for i in range(STREAMS * _STEP // 32):
            address = builder.add(at, _I64(i // STREAMS * 32))
            if i % STREAMS:
                address = builder.add(address, apart)
            value = builder.load(builder.inttoptr(address, ir.PointerType()), typ=_VECTOR)
            value.align = 32
            read[i % _CHAINS] = builder.or_(read[i % _CHAINS], value)
        following = builder.add(at, _I64(_STEP))
        at.add_incoming(start, before)
        at.add_incoming(following, loop)
        for chain, value in zip(chains, read, strict=True):
            chain.add_incoming(ir.Constant(_VECTOR, [0] * 8), before)
            chain.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
        builder.position_at_end(after)
        whole = read[0]
        for value in read[1:]:
            whole = builder.or_(whole, value)
        return builder.extract_element(builder.bitcast(whole, ir.VectorType(_I64, 4)), _I32(0))

    return types.int64(types.int64, types.int64, types.int64), codegen


@job
def _touch(arguments, thread, threads):
    """arguments: (start, bytes of a share)"""
    start, share = load_i64(arguments), load_i64(arguments + 8)
    for at in range(start + thread * share, start + (thread + 1) * share, 8):
        store_i64(at, 1)


@job
def _read(arguments, thread, threads):
    """arguments: (start, bytes of a share, where in it, bytes, a result of each thread)"""
    start, share = load_i64(arguments), load_i64(arguments + 8)
    at, half = start + thread * share + load_i64(arguments + 16), load_i64(arguments + 24) // 2
    store_i64(arguments + 32 + 8 * thread, _read_streams(at, at + half, half))


class Reader:
    """Memory larger than the caches; `read` goes through the next window of it."""

    def __init__(self, pool: Pool):
        self._pool, self.window = pool, WINDOW_BYTES
        share = max(SHARE_BYTES // pool.threads, LEAST_SHARE_BYTES) // WINDOW_BYTES * WINDOW_BYTES
        self._memory = np.empty(pool.threads * share + _PAGE, np.uint8)
        start = -(-self._memory.ctypes.data // _PAGE) * _PAGE
        self._arguments = np.array([start, share, 0, WINDOW_BYTES, *[0] * pool.threads], np.int64)
        pool.run(_touch.address, self._arguments)

    def read(self) -> float:
        """Bytes per second of one window of every thread."""
        started = perf_counter()
        self._pool.run(_read.address, self._arguments)
        seconds = perf_counter() - started
        self._arguments[2] = (self._arguments[2] + WINDOW_BYTES) % self._arguments[1]
        return self._pool.threads * WINDOW_BYTES / seconds

    def combined(self) -> list[int]:
        """Of the window read last, by each thread: every fourth 64-bit word, or-ed."""
        return self._arguments[4:].tolist()


def read_bandwidth(pool: Pool, seconds: float = 1.0) -> float:
    """Bytes per second that all threads of the pool read from memory together: the median over so long."""
    reader = Reader(pool)
    reader.read()  # the workers wake up
    speeds, end = [reader.read()], perf_counter() + seconds
    while perf_counter() < end:
        speeds.append(reader.read())
    return median(speeds)
