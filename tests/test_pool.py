"""The pool runs every job on every thread, sleeps when idle, and ends cleanly."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cpu_kernels import Pool, other_threads, topology
from cpu_kernels.atomic import current_cpu, fetch_add, load_i64, store_i64
from cpu_kernels.jit import job, kernel
from cpu_kernels.pool import MAX_THREADS, SLEEPERS, dispatch


@job
def _count(arguments, thread, threads):
    """(calls, sum of `threads`, calls of thread 0, of thread 1, ...)"""
    fetch_add(arguments, 1)
    fetch_add(arguments + 8, threads)
    store_i64(arguments + 16 + 8 * thread, load_i64(arguments + 16 + 8 * thread) + 1)


@kernel
def _dispatch_often(control, address, arguments, times):
    for _ in range(times):
        dispatch(control, address, arguments.ctypes.data)


@pytest.mark.parametrize("threads", [1, 2, 3, 9, 18])
def test_every_thread_runs_every_job_once(threads):
    counts = np.zeros(2 + threads, np.int64)
    with Pool(threads) as pool:
        assert pool.threads == threads
        for _ in range(20):
            pool.run(_count.address, counts)
        _dispatch_often(pool.control, _count.address, counts, 30)
    assert counts.tolist() == [50 * threads, 50 * threads**2, *[50] * threads]


def test_two_pools_do_not_mix():
    a, b = np.zeros(4, np.int64), np.zeros(5, np.int64)
    with Pool(2) as first, Pool(3) as second:
        for _ in range(5):
            first.run(_count.address, a)
            second.run(_count.address, b)
    assert (a.tolist(), b.tolist()) == ([10, 20, 5, 5], [15, 45, 5, 5, 5])


def test_idle_workers_sleep_and_wake():
    counts = np.zeros(5, np.int64)
    with Pool(3) as pool:
        for _ in range(3):
            pool.run(_count.address, counts)
            patience = time.monotonic() + 20
            while _sleepers(pool) < 2 and time.monotonic() < patience:
                time.sleep(0.002)
            assert _sleepers(pool) == 2
    assert counts.tolist() == [9, 27, 3, 3, 3]


@kernel
def _load(address):
    return load_i64(address)


def _sleepers(pool: Pool) -> int:
    return _load(pool.control + SLEEPERS)


@job
def _where(arguments, thread, threads):
    store_i64(arguments + 8 * thread, current_cpu())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")
def test_the_caller_leaves_a_workers_cpu_and_keeps_its_mask(monkeypatch):
    mask = os.sched_getaffinity(0)
    two = tuple(sorted(mask)[:2])
    monkeypatch.setattr(topology, "nodes", lambda: (topology.Node(0, two, 0),))
    monkeypatch.setattr(topology, "cpu_quota", lambda: 2.0)
    found, at_home = np.zeros(2, np.int64), 0
    with Pool(2) as pool:
        for _ in range(20):
            os.sched_setaffinity(0, two[1:])
            os.sched_setaffinity(0, mask)
            pool.run(_where.address, found)
            at_home += found[0] == two[0]
            assert found[1] == two[1]
        assert os.sched_getaffinity(0) == mask
        os.sched_setaffinity(0, two[1:])
        try:
            pool.run(_where.address, found)
            assert found[0] == two[1]  # its mask does not let it
        finally:
            os.sched_setaffinity(0, mask)
    assert at_home >= 10  # where the scheduler moved it again meanwhile it is not


def test_an_idle_pool_takes_no_cpu_time():
    """CPU time, not wall time: a spinning worker takes all of it, a parked one none, however busy the machine is."""
    counts = np.zeros(5, np.int64)
    with Pool(3) as pool:
        pool.run(_count.address, counts)
        patience = time.monotonic() + 20
        while _sleepers(pool) < 2 and time.monotonic() < patience:
            time.sleep(0.002)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.025


def _blas_threads() -> list[int]:
    return [getattr(library, getter)() for library, _, getter in other_threads.blas_libraries()]


def test_torch_and_blas_have_one_thread_while_a_pool_lives():
    blas = other_threads.blas_libraries()
    assert blas or "openblas" not in Path("/proc/self/maps").read_text()
    found = torch.get_num_threads(), _blas_threads()
    try:
        torch.set_num_threads(2)
        for library, setter, _ in blas:
            getattr(library, setter)(2)
        before = _blas_threads()  # 2, or 1 where there is but one CPU
        first = Pool(2)
        with Pool(1):
            first.close()
            assert (torch.get_num_threads(), _blas_threads()) == (1, [1] * len(blas))
        assert (torch.get_num_threads(), _blas_threads()) == (2, before)
    finally:
        torch.set_num_threads(found[0])
        for (library, setter, _), threads in zip(blas, found[1], strict=True):
            getattr(library, setter)(threads)


def test_a_closed_pool_is_refused_and_its_threads_are_gone():
    before = threading.active_count()
    pool = Pool(3)
    assert threading.active_count() == before + 2
    pool.close()
    pool.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        pool.run(_count.address, np.zeros(4, np.int64))


def test_a_forgotten_pool_stops_its_threads():
    before = threading.active_count()
    pool = Pool(2)
    del pool
    gc.collect()
    assert threading.active_count() == before


def test_a_refused_thread_leaves_none_behind(monkeypatch):
    before, start = threading.active_count(), threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "cpu_kernels-3":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        Pool(5)
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1])
def test_impossible_thread_counts_are_refused(threads):
    with pytest.raises(ValueError, match=f"{threads} threads; 1 to {MAX_THREADS} are possible"):
        Pool(threads)


def test_scratch_only_grows_and_is_aligned():
    with Pool(1) as pool:
        first = pool.scratch(100)
        assert first % 64 == 0
        assert pool.scratch(50) == first
        assert pool.scratch(10 << 20) % 64 == 0


SCRIPT = """
import os, sys
import numpy as np
from cpu_kernels import Pool
from tests.test_pool import _count
pool, counts = Pool(2), np.zeros(4, np.int64)
pool.run(_count.address, counts)
{body}
"""


def _python(body: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def test_a_forked_child_is_told_and_can_make_its_own_pool():
    body = """
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    pool.run(_count.address, counts)
except RuntimeError as error:
    print(error)
with Pool(2) as own:
    own.run(_count.address, counts)
print(counts[0])
"""
    with _python(body) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out == "this Pool's threads stayed behind in the parent process: make a new Pool after fork\n4\n"


def test_the_interpreter_exits_with_a_pool_open():
    with _python("print('done')") as process:
        out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "done\n")


def test_ctrl_c_interrupts_between_jobs():
    with _python("print('ready', flush=True)\nwhile True: pool.run(_count.address, counts)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == -signal.SIGINT
