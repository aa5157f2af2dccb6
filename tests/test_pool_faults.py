"""A kernel that dies ends in a Python exception with its name, on whatever thread; other faults stay what they were."""

import mmap
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cpu_kernels import Pool
from cpu_kernels.atomic import load_atomic, load_i64, relax, store_i64
from cpu_kernels.jit import entry, job
from cpu_kernels.pool import WorkerFault, barrier, dispatch


@job
def _read(arguments, thread, threads):
    """(address, thread that reads it, control, number of barriers)"""
    if thread == load_i64(arguments + 8):
        store_i64(arguments + 32, load_i64(load_i64(arguments)))
    for _ in range(load_i64(arguments + 24)):
        barrier(load_i64(arguments + 16), thread, threads)


@job
def _divide(arguments, thread, threads):
    """(divisor, thread that objects to 0, control, number of barriers)"""
    if thread == load_i64(arguments + 8) and load_i64(arguments) == 0:
        raise ValueError("nothing can be divided by this")
    for _ in range(load_i64(arguments + 24)):
        barrier(load_i64(arguments + 16), thread, threads)


@entry
def _read_on_caller(control, arguments):
    store_i64(arguments + 32, load_i64(load_i64(arguments)))


@entry
def _count(control, arguments):
    store_i64(arguments, load_i64(arguments) + 1)


@entry
def _run_job(control, arguments):
    """(address, thread, control, barriers, result, job)"""
    dispatch(control, load_i64(arguments + 40), arguments)


def _arguments(pool: Pool, address: int, thread: int, barriers: int = 0, job: int = 0) -> np.ndarray:
    return np.array([address, thread, pool.control, barriers, 0, job], np.int64)


@pytest.mark.parametrize("barriers", [0, 3])
@pytest.mark.parametrize(("threads", "thread"), [(1, 0), (3, 0), (3, 1), (3, 2)])
def test_a_bad_address_in_a_job(threads, thread, barriers):
    with Pool(threads) as pool:
        with pytest.raises(WorkerFault, match=rf"test_pool_faults._read died on thread {thread}.*SIGSEGV .*0x10") as it:
            pool.run(_read.address, _arguments(pool, 16, thread, barriers))
        assert (it.value.kernel, it.value.thread) == (f"{__name__}._read", thread)
        assert (it.value.signal, it.value.address) == ("SIGSEGV", 16)
        with pytest.raises(RuntimeError, match="cannot be used any more"):
            pool.run(_read.address, _arguments(pool, pool.control, thread))
    with Pool(threads) as pool:  # the process is as well as before
        pool.run(_read.address, _arguments(pool, pool.control, thread))


@pytest.mark.parametrize("barriers", [0, 3])
@pytest.mark.parametrize(("threads", "thread"), [(1, 0), (3, 0), (3, 1)])
def test_an_exception_in_a_job(threads, thread, barriers, capfd):
    with Pool(threads) as pool:
        pool.run(_divide.address, _arguments(pool, 1, thread))
        with pytest.raises(WorkerFault, match=r"_divide died .*ValueError: nothing can be divided by this") as it:
            pool.run(_divide.address, _arguments(pool, 0, thread, barriers))
        assert isinstance(it.value.__cause__, ValueError)
        assert (it.value.thread, it.value.signal) == (thread, None)
        with pytest.raises(RuntimeError, match="cannot be used any more"):
            pool.scratch(1), pool.control
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("thread", [0, 1])
def test_a_file_cut_short_under_its_map(thread, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, Pool(2) as pool:
        weights = np.frombuffer(mapped, np.uint8)
        last = weights.ctypes.data + 2 * mmap.PAGESIZE
        pool.run(_read.address, _arguments(pool, last, thread))
        file.truncate(mmap.PAGESIZE)
        with pytest.raises(WorkerFault, match=r"SIGBUS .*a memory-mapped file was cut short") as it:
            pool.run(_read.address, _arguments(pool, last, thread))
        assert it.value.address == last
        del weights


def test_a_program_stops_where_it_died():
    count = np.zeros(1, np.int64)
    with Pool(2) as pool:
        page = np.zeros(8, np.int64)
        bad = _arguments(pool, page.ctypes.data, 1, job=_read.address)
        with pool.record() as program:
            pool.call(_count.address, count)
            pool.call(_run_job.address, bad)
            pool.call(_count.address, count)
        program.replay()
        bad[0] = 24
        with pytest.raises(WorkerFault, match="_read died on thread 1"):
            program.replay()
        with pytest.raises(RuntimeError, match="cannot be used any more"):
            program.replay()
    assert count[0] == 5


def test_an_entry_that_dies_by_itself():
    with Pool(2) as pool, pytest.raises(WorkerFault, match="_read_on_caller died on thread 0"):
        pool.call(_read_on_caller.address, _arguments(pool, 40, 0))


@job
def _wait(arguments, thread, threads):
    """(go on when this is not 0, started)"""
    if thread == 0:
        store_i64(arguments + 8, 1)
        while load_atomic(arguments) == 0:
            relax()


def test_two_callers_at_once_are_told():
    flags = np.zeros(2, np.int64)
    with Pool(2) as pool:
        other = threading.Thread(target=pool.run, args=(_wait.address, flags))
        other.start()
        try:
            while flags[1] == 0:
                time.sleep(0.001)
            with pytest.raises(RuntimeError, match="another thread's call"):
                pool.run(_wait.address, np.ones(2, np.int64))
            with pytest.raises(RuntimeError, match="another thread's call"):
                pool.close()
        finally:
            flags[0] = 1
            other.join()
        pool.run(_wait.address, np.ones(2, np.int64))


PREAMBLE = """
import ctypes, faulthandler, os, signal, sys
import numpy as np
{before}
from cpu_kernels import Pool
from tests.test_pool_faults import _arguments, _read
pool = Pool(2)
pool.run(_read.address, _arguments(pool, pool.control, 1))
{after}
"""


def _python(after: str, before: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PREAMBLE.format(before=before, after=after)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("after", ["ctypes.string_at(8)", "os.kill(os.getpid(), signal.SIGSEGV)"])
@pytest.mark.parametrize("before", ["", "faulthandler.enable()"])
def test_faults_elsewhere_end_the_process_as_before(after, before):
    run = _python(after, before)
    assert run.returncode == -signal.SIGSEGV
    assert ("Fatal Python error: Segmentation fault" in run.stderr) == bool(before)


def test_a_handler_set_later_passes_faults_on():
    body = "try: pool.run(_read.address, _arguments(pool, 8, 1))\nexcept RuntimeError as error: print(error)"
    run = _python(f"faulthandler.enable()\n{body}")
    assert run.returncode == 0
    assert "_read died on thread 1 of its pool: SIGSEGV" in run.stdout


def test_other_unraisable_exceptions_go_where_they_went():
    after = "class Bad:\n    def __del__(self): raise KeyError('mine')\nBad()"
    run = _python(after)
    assert run.returncode == 0
    assert "KeyError: 'mine'" in run.stderr
