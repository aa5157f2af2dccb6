"""The pool's control block and the compiled code that works on it: workers, dispatch, barrier, the run of entries.

Jobs and entries are C functions known by address: a job (`jit.job`) runs on every thread, an entry (`jit.entry`) on the
caller, which dispatches jobs. The control block is memory of int64 fields at the offsets below, one cache line for what
different threads write; jobs get at it through the address that their entry puts into their arguments.

Dispatch and join of two threads take 0.06 us (2 cores of a Zen 4) while the workers spin.
"""

from .atomic import (
    call_job,
    current_cpu,
    exchange,
    fetch_add,
    futex,
    get_affinity,
    load_atomic,
    load_i64,
    monotonic,
    relax,
    sched_yield,
    set_affinity,
    store_atomic,
    store_i64,
    thread_identity,
)
from .faults import FUNCTION, IDENTITY, guarded
from .jit import exact_kernel, kernel

SPIN_NS = 1_000_000  # a worker parks after this long without a job
_YIELD_AFTER = 2_000  # spins (some 50 us) after which a waiting thread offers its CPU to others

EPOCH, JOB_ADDRESS, ARGUMENTS, THREADS, DONE, SLEEPERS = 0, 64, 72, 80, 128, 192
CHUNK = 256  # a counter for jobs whose threads take units one by one; 0 when a job begins
ARRIVED, RELEASED = 320, 384
BUSY, SLOT = 448, 456  # 1 while a call runs; the slot of the caller (faults.py)
HOME = 464  # the CPU that is left to the caller, -1 for none
FAULTS = 512  # the record of faults
# Groups of threads by NUMA node: their number, then a row of int64 for each thread: (index of its node in Pool.nodes,
# its number within the node, threads of that node, the node's first thread).
NODES, MASK, SEATS, SEAT_BYTES = 576, 640, 896, 32
_MASK_BYTES = 128  # two masks of 1024 CPUs: the caller's, and one of its home alone
DONE_WELL, IN_USE, FAULT = 0, 1, 2  # how a call ends
_WAIT, _WAKE, _EVERYBODY = 128, 129, 1 << 30  # FUTEX_WAIT | PRIVATE, FUTEX_WAKE | PRIVATE


@kernel
def work(control, thread, slot):
    """A worker's life: wait for the epoch to change, run the job, report; return when the job's address is 0."""
    store_i64(slot + IDENTITY, thread_identity())
    last = 0
    while True:
        spins, idle_since = 0, monotonic()
        while load_atomic(control + EPOCH) == last:
            relax()
            spins += 1
            if spins % 64 == 0 and spins > _YIELD_AFTER:
                sched_yield()
                if monotonic() - idle_since > SPIN_NS:
                    fetch_add(control + SLEEPERS, 1)
                    futex(control + EPOCH, _WAIT, last & 0xFFFFFFFF)
                    fetch_add(control + SLEEPERS, -1)
                    spins, idle_since = 0, monotonic()
        last = load_atomic(control + EPOCH)
        job = load_i64(control + JOB_ADDRESS)
        if job != 0:
            guarded(slot, job, load_i64(control + ARGUMENTS), thread, load_i64(control + THREADS))
        fetch_add(control + DONE, 1)
        if job == 0:
            return


@kernel
def dispatch(control, job, arguments):
    """Run a job on all threads of the pool whose control block this is; returns when all have finished. For kernels."""
    threads, slot = load_i64(control + THREADS), load_i64(control + SLOT)
    entry = load_i64(slot + FUNCTION)
    store_i64(slot + FUNCTION, job)
    store_i64(control + CHUNK, 0)
    if threads > 1:
        store_i64(control + JOB_ADDRESS, job)
        store_i64(control + ARGUMENTS, arguments)
        store_atomic(control + DONE, 0)
        fetch_add(control + EPOCH, 1)
        if load_atomic(control + SLEEPERS) > 0:
            futex(control + EPOCH, _WAKE, _EVERYBODY)
    if job != 0:
        call_job(job, arguments, 0, threads)
    _join(control, threads)
    store_i64(slot + FUNCTION, entry)


@kernel
def _join(control, threads):
    spins = 0
    while load_atomic(control + DONE) < threads - 1:
        relax()
        spins += 1
        if spins > _YIELD_AFTER:
            sched_yield()


@kernel
def barrier(control, thread, threads):
    """Inside a job: wait until all its threads are here. What they wrote before is visible to all behind it.

    Once a thread of the pool has died nobody waits any more: the results are lost anyway.
    """
    if threads == 1:
        return
    arrival = fetch_add(control + ARRIVED, 1) + 1
    if arrival % threads == 0:
        store_atomic(control + RELEASED, arrival)
        return
    spins = 0
    target = arrival + threads - arrival % threads
    while load_atomic(control + RELEASED) < target:
        relax()
        spins += 1
        if spins > _YIELD_AFTER:
            if load_atomic(control + FAULTS) > 0:
                return
            sched_yield()


@kernel
def _claim(control):
    if exchange(control + BUSY, 1) != 0:
        return False
    store_i64(load_i64(control + SLOT) + IDENTITY, thread_identity())
    home = load_i64(control + HOME)
    if home >= 0 and current_cpu() != home:
        _go_home(control, home)
    return True


@kernel
def _go_home(control, home):
    """Off a pinned worker's CPU, where each would wait for the other's time slice. The mask stays as it was."""
    mask, alone = control + MASK, control + MASK + _MASK_BYTES
    word, bit = home // 64 * 8, 1 << home % 64
    if home >= 8 * _MASK_BYTES or get_affinity(mask, _MASK_BYTES) < 0 or load_i64(mask + word) & bit == 0:
        return
    for at in range(0, _MASK_BYTES, 8):
        store_i64(alone + at, 0)
    store_i64(alone + word, bit)
    set_affinity(alone, _MASK_BYTES)
    set_affinity(mask, _MASK_BYTES)


@kernel
def _release(control):
    store_i64(load_i64(control + SLOT) + IDENTITY, 0)
    store_atomic(control + BUSY, 0)


@kernel
def _enter(control, entry, arguments):
    slot = load_i64(control + SLOT)
    died = guarded(slot, entry, control, arguments, 0)
    if died and load_i64(slot + FUNCTION) != entry:  # in a job: the workers are still at it
        _join(control, load_i64(control + THREADS))
    return load_atomic(control + FAULTS) == 0


@exact_kernel("int64(int64, int64, int64[::1])")
def run_entry(control, entry, arguments):
    if not _claim(control):
        return IN_USE
    well = _enter(control, entry, arguments.ctypes.data)
    _release(control)
    return DONE_WELL if well else FAULT


@exact_kernel("int64(int64, int64[:, ::1])")
def run_entries(control, table):
    """`table` [n, 2]: (address of an entry, address of its arguments)."""
    if not _claim(control):
        return IN_USE
    well, i = True, 0
    while well and i < len(table):
        well = _enter(control, table[i, 0], table[i, 1])
        i += 1
    _release(control)
    return DONE_WELL if well else FAULT
