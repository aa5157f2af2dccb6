"""The thread pool: workers that spin in native code, never take the GIL, and park when idle.

The caller takes part as thread 0; where the threads run says topology.py. One call at a time: the pool is the engine's,
not the process's.
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import other_threads, topology
from .atomic import load_i64
from .control import (
    CHUNK,
    DONE_WELL,
    FAULTS,
    HOME,
    IN_USE,
    NODES,
    SEAT_BYTES,
    SEATS,
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
from .recycled import Recycler

__all__ = [
    "CHUNK",
    "MAX_THREADS",
    "NODES",
    "SEATS",
    "SEAT_BYTES",
    "SLEEPERS",
    "THREADS",
    "Pool",
    "Program",
    "WorkerFault",
    "barrier",
    "dispatch",
]

MAX_THREADS = 1024


@entry
def _dispatch(control, arguments):
    """(job, its arguments)"""
    dispatch(control, load_i64(arguments), load_i64(arguments + 8))


@entry
def _stop(control, arguments):
    dispatch(control, 0, 0)


def _serve(memory: np.ndarray, control: int, thread: int, slot: int, cpus: tuple[int, ...] | None, notes: set) -> None:
    """A worker's life. Holds `memory`, not the pool, so that a forgotten pool can be collected."""
    if cpus is not None:
        _confine(cpus, notes)
    work(control, thread, slot)


def _confine(cpus: tuple[int, ...], notes: set) -> None:
    """The calling thread to these CPUs."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:  # a container forbids it, or the mask shrank since we looked: run wherever we may
        notes.add(f"threads are not pinned: {error.strerror or error}")


def _shut(memory: np.ndarray, control: int, workers: list[threading.Thread], undo: contextlib.ExitStack) -> bool:
    """False where a call is still running."""
    if run_entry(control, _stop.address, np.zeros(0, np.int64)) == IN_USE:
        return False
    for worker in workers:
        worker.join()
    undo.close()
    return True


def _release_mask(thread: int, mask: set[int]) -> None:
    with contextlib.suppress(OSError):  # the thread has ended
        os.sched_setaffinity(thread, mask)


_POOLS: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def _after_fork() -> None:
    forget_slots()
    for pool in list(_POOLS):
        pool._finalize.detach()  # no workers to stop
        pool._unusable = "this Pool's threads stayed behind in the parent process: make a new Pool after fork"


os.register_at_fork(after_in_child=_after_fork)


class Pool:
    """`threads` compute threads, the caller included. Default: one for each physical core within mask and quota.

    `nodes`: the groups that they form, None for the machine's NUMA nodes, or a number of virtual ones (for tests; 1: no
    groups). `node_of_thread[i]` is the index in `nodes` of thread i's node; threads of a node are numbered together.
    `notes`: what the machine did not allow, a sentence each.
    """

    def __init__(self, threads: int | None = None, *, nodes: int | None = None):
        count = topology.default_threads() if threads is None else threads
        if not 1 <= count <= MAX_THREADS:
            raise ValueError(f"{count} threads; 1 to {MAX_THREADS} are possible")
        self.threads = count
        self.nodes = topology.group_nodes(topology.nodes(), count, nodes)
        self._seats = topology.seats(count, self.nodes, topology.cpu_quota())
        self.node_of_thread = tuple(seat.node for seat in self._seats)
        self.notes: set[str] = set()
        self._unusable = ""
        self._memory, self._control = aligned(SEATS + SEAT_BYTES * count)
        self._scratch = Scratch(keep=False)
        self._program: Program | None = None
        self.results = Recycler()
        install()
        self._start()
        _POOLS.add(self)

    def _start(self) -> None:
        undo, workers = contextlib.ExitStack(), list[threading.Thread]()
        slots = [take_slot(self._control + FAULTS, thread) for thread in range(self.threads)]
        for slot in slots:
            undo.callback(free_slot, slot)
        self._write(SLOT, slots[0])
        own = self._seats[0].cpus
        self._write(HOME, own[0] if own and self._pinned() else -1)
        self._write_seats()
        other_threads.hold()
        undo.callback(other_threads.release)
        if self._seats[0].cpus is not None and len(self.nodes) > 1:
            # The caller is thread 0: it stays on the first node. Otherwise it keeps its mask, and a CPU is left to it.
            undo.callback(_release_mask, threading.get_native_id(), os.sched_getaffinity(0))
            _confine(self.nodes[0].cpus, self.notes)
        self._finalize = weakref.finalize(self, _shut, self._memory, self._control, workers, undo)
        try:
            for i in range(1, self.threads):
                arguments = (self._memory, self._control, i, slots[i], self._seats[i].cpus, self.notes)
                worker = threading.Thread(target=_serve, args=arguments, name=f"cpu_kernels-{i}", daemon=True)
                workers.append(worker)
                worker.start()
        except BaseException:  # no more threads for this user, or Ctrl-C: those that run must not stay
            workers[:] = [worker for worker in workers if worker.is_alive()]
            self._write(THREADS, 1 + len(workers))
            self._finalize()
            raise
        self._write(THREADS, self.threads)

    def _write_seats(self) -> None:
        self._write(NODES, len(self.nodes))
        for thread, node in enumerate(self.node_of_thread):
            first, members = self.node_of_thread.index(node), self.node_of_thread.count(node)
            for i, value in enumerate((node, thread - first, members, first)):
                self._write(SEATS + SEAT_BYTES * thread + 8 * i, value)

    def _pinned(self) -> bool:
        return all(seat.cpus is not None and len(seat.cpus) == 1 for seat in self._seats)

    def __str__(self) -> str:
        cpus = topology.format_cpus({cpu for node in self.nodes for cpu in node.cpus})
        pinned = ", pinned" if self._pinned() else ""
        groups = f" in {len(self.nodes)} NUMA nodes" if len(self.nodes) > 1 else ""
        return "; ".join([f"{self.threads} threads on CPUs {cpus}{groups}{pinned}", *sorted(self.notes)])

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
        if arguments.dtype != np.int64 or not arguments.flags.c_contiguous:
            raise TypeError(
                f"arguments are {arguments.dtype} with steps {arguments.strides}; contiguous int64 are needed"
            )
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
