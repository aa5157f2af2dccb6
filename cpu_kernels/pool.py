"""The thread pool: workers that spin in native code, never take the GIL, and park when idle.

The caller takes part as thread 0 and keeps its own CPU mask; workers 1.. are pinned, one to a physical core. One caller
at a time: the pool is the engine's, not the process's.
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from .atomic import load_i64
from .control import (
    CHUNK,
    DONE_WELL,
    FAULTS,
    IN_USE,
    SIZE,
    SLEEPERS,
    SLOT,
    THREADS,
    barrier,
    dispatch,
    run_entry,
    work,
)
from .faults import WorkerFault, fault, forget_slots, free_slot, install, take_slot, watch_exceptions
from .jit import entry
from .program import Program, Scratch, aligned
from .topology import default_threads, pin_order

__all__ = ["CHUNK", "MAX_THREADS", "SLEEPERS", "THREADS", "Pool", "Program", "WorkerFault", "barrier", "dispatch"]

MAX_THREADS = 1024


@entry
def _dispatch(control, arguments):
    """(job, its arguments)"""
    dispatch(control, load_i64(arguments), load_i64(arguments + 8))


@entry
def _stop(control, arguments):
    dispatch(control, 0, 0)


def _serve(memory: np.ndarray, control: int, thread: int, slot: int, cpu: int | None) -> None:
    """A worker's life. Holds `memory`, not the pool, so that a forgotten pool can be collected."""
    if cpu is not None:
        with contextlib.suppress(OSError):  # the mask shrank since we looked: run wherever we may
            os.sched_setaffinity(0, {cpu})
    work(control, thread, slot)


def _shut(memory: np.ndarray, control: int, workers: list[threading.Thread], slots: list[int], process: int) -> bool:
    """False where a call is still running."""
    if os.getpid() != process:  # a forked child has no workers to stop
        return True
    if run_entry(control, _stop.address, np.zeros(0, np.int64)) == IN_USE:
        return False
    for worker in workers:
        worker.join()
    for slot in slots:
        free_slot(slot)
    return True


_POOLS: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def _after_fork() -> None:
    forget_slots()
    for pool in list(_POOLS):
        pool._unusable = "this Pool's threads stayed behind in the parent process: make a new Pool after fork"


os.register_at_fork(after_in_child=_after_fork)


class Pool:
    """`threads` compute threads, the caller included. Default: one for each physical core within mask and quota."""

    def __init__(self, threads: int | None = None):
        count = default_threads() if threads is None else threads
        if not 1 <= count <= MAX_THREADS:
            raise ValueError(f"{count} threads; 1 to {MAX_THREADS} are possible")
        self.threads = count
        self._unusable = ""
        self._memory, self._control = aligned(SIZE)
        self._scratch = Scratch(keep=False)
        self._program: Program | None = None
        install()
        slots = [take_slot(self._control + FAULTS, thread) for thread in range(count)]
        self._write(SLOT, slots[0])
        # Thread 0 is the caller, wherever it runs. More threads than CPUs: nobody is pinned, the scheduler shares.
        cpus: list[Any] = pin_order()
        if count > len(cpus):
            cpus = [None] * count
        workers: list[threading.Thread] = []
        self._finalize = weakref.finalize(self, _shut, self._memory, self._control, workers, slots, os.getpid())
        try:
            for i in range(1, count):
                arguments = (self._memory, self._control, i, slots[i], cpus[i])
                worker = threading.Thread(target=_serve, args=arguments, name=f"cpu_kernels-{i}", daemon=True)
                workers.append(worker)
                worker.start()
        except BaseException:  # no more threads for this user, or Ctrl-C: those that run must not stay
            workers[:] = [worker for worker in workers if worker.is_alive()]
            self._write(THREADS, 1 + len(workers))
            self._finalize()
            raise
        self._write(THREADS, count)
        _POOLS.add(self)

    def _write(self, offset: int, value: int) -> None:
        at = self._control - self._memory.ctypes.data + offset
        self._memory[at : at + 8].view(np.int64)[0] = value

    @property
    def control(self) -> int:
        """Address of the control block, for `dispatch`."""
        if self._unusable:
            raise RuntimeError(self._unusable)
        return self._control

    def call(self, entry: int, arguments: np.ndarray, *keep: Any) -> None:
        """Run the entry at this address on the calling thread; `arguments`: contiguous int64, its own array each call.

        `keep`: whatever else the entry reads or writes by address and must outlive a recording.
        """
        watch_exceptions()
        self.check(run_entry(self.control, entry, arguments))
        if self._program is not None:
            self._program.append(entry, arguments, keep)

    def check(self, status: int) -> None:
        """Raise what the end of a native call says: WorkerFault, or RuntimeError where another thread's call runs."""
        if status == DONE_WELL:
            return
        if status == IN_USE:
            raise RuntimeError("this Pool is running another thread's call; it takes one at a time")
        error = fault(self._control + FAULTS)
        self._unusable = f"{error}; this Pool cannot be used any more"
        raise error

    def run(self, job: int, arguments: np.ndarray) -> None:
        """Call the native function at address `job` on every thread; `arguments`: contiguous int64 for the job."""
        self.call(_dispatch.address, np.array([job, arguments.ctypes.data]), arguments)

    @contextlib.contextmanager
    def record(self) -> Iterator[Program]:
        """Calls made inside are run and appended to the Program, which can `replay` them afterwards."""
        if self._program is not None:
            raise RuntimeError("this Pool is being recorded already")
        program = self._program = Program(self)
        try:
            yield program
        finally:
            self._program = None
        program.finish()

    def scratch(self, size: int) -> int:
        """Address of at least `size` bytes, 64-byte aligned: one buffer that only grows, the same for the next call.

        While recording it is the Program's own buffer, which lives as long as the Program.
        """
        return (self._scratch if self._program is None else self._program.scratch).address(size)

    def close(self) -> None:
        """Stop the workers. Closing twice does nothing; using a closed pool is an error, closing a busy one too."""
        end = self._finalize.peek()
        if end is not None and not _shut(*end[2]):
            raise RuntimeError("this Pool is running another thread's call; close it afterwards")
        self._finalize.detach()
        self._unusable = self._unusable or "this Pool is closed"

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
