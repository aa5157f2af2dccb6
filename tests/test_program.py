"""Recorded entries run again in order, on memory that stays; the barrier keeps the threads of a job together."""

import gc
import weakref

import numpy as np
import pytest

from cpu_kernels import Pool
from cpu_kernels.atomic import fetch_add, load_i64, store_i64
from cpu_kernels.jit import entry, job
from cpu_kernels.pool import barrier, dispatch


@job
def _multiply_share(arguments, thread, threads):
    """(value, factor): thread 0 alone, so that the entry's order shows."""
    if thread == 0:
        value = load_i64(arguments)
        store_i64(value, load_i64(value) * load_i64(arguments + 8))


@entry
def _multiply(control, arguments):
    """(value, factor, job): in a job"""
    dispatch(control, load_i64(arguments + 16), arguments)


@entry
def _add(control, arguments):
    """(value, term): on the caller"""
    value = load_i64(arguments)
    store_i64(value, load_i64(value) + load_i64(arguments + 8))


@job
def _rounds(arguments, thread, threads):
    """(control, rounds, errors, cells [threads]): every thread adds up what all wrote in the round before."""
    control, rounds, errors = load_i64(arguments), load_i64(arguments + 8), load_i64(arguments + 16)
    cells = load_i64(arguments + 24)
    for number in range(1, rounds + 1):
        store_i64(cells + 64 * thread, number * (thread + 1))
        barrier(control, thread, threads)
        total = 0
        for other in range(threads):
            total += load_i64(cells + 64 * other)
        if total != number * threads * (threads + 1) // 2:
            fetch_add(errors, 1)
        barrier(control, thread, threads)


def _arguments(value: np.ndarray, number: int) -> np.ndarray:
    return np.array([value.ctypes.data, number, _multiply_share.address], np.int64)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_program_runs_its_entries_again_in_their_order(threads):
    value = np.array([2], np.int64)
    with Pool(threads) as pool:
        pool.call(_add.address, _arguments(value, 1))  # 3, not recorded
        with pool.record() as program:
            pool.call(_add.address, _arguments(value, 4), value)  # 7
            pool.call(_multiply.address, _arguments(value, 10), value)  # 70
            pool.call(_add.address, _arguments(value, -5), value)  # 65
        pool.call(_add.address, _arguments(value, 1))  # 66, not recorded
        assert (value[0], len(program)) == (66, 3)
        for _ in range(3):
            expected = (value[0] + 4) * 10 - 5
            program.replay()
            assert value[0] == expected


def test_a_job_run_by_itself_is_recorded_too():
    value = np.array([3], np.int64)
    with Pool(2) as pool:
        with pool.record() as program:
            pool.run(_multiply_share.address, _arguments(value, 2))
        program.replay()
    assert value[0] == 12


def test_a_program_keeps_what_its_entries_use():
    value = np.array([1], np.int64)
    alive = weakref.ref(value)
    with Pool(1) as pool:
        with pool.record() as program:
            pool.call(_add.address, _arguments(value, 1), value)
        del value
        gc.collect()
        program.replay()
        kept = alive()
        assert kept is not None
        assert kept[0] == 3
        del program, kept
        gc.collect()
        assert alive() is None


@entry
def _fill(control, arguments):
    """(bytes at, count, value)"""
    at, count = load_i64(arguments), load_i64(arguments + 8)
    for i in range(0, count, 8):
        store_i64(at + i, load_i64(arguments + 16))


def test_scratch_of_a_program_stays_when_the_pools_own_grows():
    small, large = 1 << 12, 3 << 20
    with Pool(1) as pool:
        outside = pool.scratch(small)
        with pool.record() as program:
            first = pool.scratch(small)
            assert first not in (0, outside)
            assert pool.scratch(small // 2) == first
            pool.call(_fill.address, np.array([first, small, 1], np.int64))
            second = pool.scratch(large)
            assert second != first
            pool.call(_fill.address, np.array([second, large, 2], np.int64))
            assert pool.scratch(small) == second
        assert pool.scratch(small) == outside
        blocks = [pool.scratch(large * i) for i in range(1, 6)]  # may not reuse the program's memory
        assert all(not block <= first < block + 5 * large for block in blocks[-1:])
        program.replay()
        assert all(address % 64 == 0 for address in (first, second, *blocks))


def test_records_do_not_nest_and_half_a_record_is_refused():
    value = np.array([1], np.int64)
    with Pool(1) as pool:
        with pool.record() as program:
            with pytest.raises(RuntimeError, match="recorded already"), pool.record():
                pass
            with pytest.raises(RuntimeError, match="not recorded to its end"):
                program.replay()
        program.replay()
        with pytest.raises(KeyError), pool.record() as broken:
            pool.call(_add.address, _arguments(value, 1), value)
            raise KeyError
        with pytest.raises(RuntimeError, match="not recorded to its end"):
            broken.replay()
        with pool.record() as again:
            pass
        again.replay()
    with pytest.raises(RuntimeError, match="closed"):
        program.replay()


def test_arguments_of_another_type_are_refused():
    with Pool(1) as pool:
        for wrong in (np.zeros(4), np.zeros(4, np.int32), np.zeros((2, 2), np.int64), np.zeros(8, np.int64)[::2]):
            with pytest.raises(TypeError):
                pool.call(_add.address, wrong)
        for wrong in (np.zeros(4), np.zeros(8, np.int64)[::2]):
            with pytest.raises(TypeError, match="contiguous int64"):
                pool.run(_multiply_share.address, wrong)


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 9, 18])
def test_no_thread_passes_a_barrier_before_the_last_arrives(threads):
    rounds = 300 if threads <= 2 else 20
    errors, cells = np.zeros(1, np.int64), np.zeros((threads, 8), np.int64)
    with Pool(threads) as pool:
        arguments = [pool.control, rounds, errors.ctypes.data, cells.ctypes.data]
        for _ in range(3):
            pool.run(_rounds.address, np.array(arguments, np.int64))
    assert errors[0] == 0
    assert cells[:, 0].tolist() == [rounds * (i + 1) for i in range(threads)]
