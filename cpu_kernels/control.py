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
YIELD_AFTER = 2_000  # spins (some 50 us) after which a waiting thread offers its CPU to others

EPOCH, JOB_ADDRESS, ARGUMENTS, THREADS, DONE, SLEEPERS = 0, 64, 72, 80, 128, 192
CHUNK = 256  # a counter for jobs whose threads take units one by one; 0 when a job begins
RELEASED = 320  # how many barriers have opened
ROOTS = 384  # groups that have come to a join, and in the next line to a barrier
BUSY, SLOT = 512, 520  # 1 while a call runs; the slot of the caller (faults.py)
HOME = 528  # the CPU that is left to the caller, -1 for none
FAULTS = 576  # the record of faults
# Groups of threads by NUMA node: their number, then a row of int64 for each thread: (index of its node in Pool.nodes,
# its number within the node, threads of that node, the node's first thread).
NODES, MASK, GROUPS, SEATS, SEAT_BYTES = 640, 704, 960, 960 + 128 * 128, 32
_MASK_BYTES = 128  # two masks of 1024 CPUs: the caller's, and one of its home alone
_GROUP = 8  # threads that count themselves in one line; two lines a group, for joins and for barriers
DONE_WELL, IN_USE, FAULT = 0, 1, 2  # how a call ends
_JOIN, _BARRIER = 0, 64
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
            if spins % 64 == 0 and spins > YIELD_AFTER:
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
        if _is_last(control, _JOIN, thread - 1, load_i64(control + THREADS) - 1):
            store_atomic(control + DONE, last)
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
        fetch_add(control + EPOCH, 1)
        if load_atomic(control + SLEEPERS) > 0:
            futex(control + EPOCH, _WAKE, _EVERYBODY)
    if job != 0:
        call_job(job, arguments, 0, threads)
    _join(control)
    store_i64(slot + FUNCTION, entry)


@kernel
def _is_last(control, line, number, arrivals):
    """Whether thread `number` of so many is the last to come here.

    A line that all increment is handed from core to core: each group of 8 threads has its own, and its last one goes on
    to the groups' line.
    """
    group = number // _GROUP
    members, groups = min(_GROUP, arrivals - group * _GROUP), -(-arrivals // _GROUP)
    if members > 1 and (fetch_add(control + GROUPS + 128 * group + line, 1) + 1) % members != 0:
        return False
    return groups == 1 or (fetch_add(control + ROOTS + line, 1) + 1) % groups == 0


@kernel
def _join(control):
    epoch = load_atomic(control + EPOCH)
    spins = 0
    while load_atomic(control + DONE) != epoch:
        relax()
        spins += 1
        if spins > YIELD_AFTER:
            sched_yield()


@kernel
def barrier(control, thread, threads):
    """Inside a job: wait until all its threads are here. What they wrote before is visible to all behind it.

    Once a thread of the pool has died nobody waits any more: the results are lost anyway.
    """
    if threads == 1:
        return
    before = load_atomic(control + RELEASED)
    if _is_last(control, _BARRIER, thread, threads):
        store_atomic(control + RELEASED, before + 1)
        return
    spins = 0
    while load_atomic(control + RELEASED) == before:
        relax()
        spins += 1
        if spins > YIELD_AFTER:
            if load_atomic(control + FAULTS) > 0:
                return
            sched_yield()


@kernel
def claim(control):
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
def release(control):
    store_i64(load_i64(control + SLOT) + IDENTITY, 0)
    store_atomic(control + BUSY, 0)


@kernel
def enter(control, entry, arguments):
    slot = load_i64(control + SLOT)
    if guarded(slot, entry, control, arguments, 0):
        _join(control)  # it died inside a job: the workers are still at it
    return load_atomic(control + FAULTS) == 0


@exact_kernel("int64(int64, int64, int64[::1])")
def run_entry(control, entry, arguments):
    if not claim(control):
        return IN_USE
    well = enter(control, entry, arguments.ctypes.data)
    release(control)
    return DONE_WELL if well else FAULT


@exact_kernel("int64(int64, int64[:, ::1])")
def run_entries(control, table):
    """`table` [n, 2]: (address of an entry, address of its arguments)."""
    if not claim(control):
        return IN_USE
    well, i = True, 0
    while well and i < len(table):
        well = enter(control, table[i, 0], table[i, 1])
        i += 1
    release(control)
    return DONE_WELL if well else FAULT
