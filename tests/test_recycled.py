"""Memory of results: never of two arrays at once, used again when free, and not hoarded."""

import gc
from itertools import pairwise

import numpy as np
import pytest

from cpu_kernels import Pool, rms_norm
from cpu_kernels.recycled import LEAST, SLACK, WASTE, Recycler

LARGE = (2, LEAST // 4)  # float32 values: twice the least


def place(array: np.ndarray) -> int:
    return array.ctypes.data


def test_an_array_as_numpy_s() -> None:
    recycler = Recycler()
    for shape in (LARGE, (3, 5, LEAST // 4), (1, 7), (0, 4), ()):
        array = recycler.empty(shape)
        assert array.shape == shape and array.dtype == np.float32
        assert array.flags.c_contiguous and array.flags.writeable
        array[...] = 1.0
        assert (array == 1.0).all()


def test_memory_is_used_again() -> None:
    recycler = Recycler()
    first = recycler.empty(LARGE)
    at = place(first)
    del first
    assert place(recycler.empty(LARGE)) == at  # and free once more, at once
    assert place(recycler.empty((LARGE[0], LARGE[1] // WASTE))) == at


def test_not_while_anything_of_it_is_held() -> None:
    recycler = Recycler()
    array = recycler.empty(LARGE)
    part, at = array[1, 5:9].reshape(2, 2).T, place(array)
    array[...] = 7.0
    del array
    gc.collect()
    other = recycler.empty(LARGE)
    other[...] = 8.0
    assert place(other) != at and (part == 7.0).all()
    del part
    third = recycler.empty(LARGE)
    assert place(third) == at and place(other) != at


def test_much_larger_memory_is_not_spent() -> None:
    recycler = Recycler()
    small = recycler.empty((LEAST // 4,))
    large = recycler.empty((WASTE * LEAST // 4 + 1,))
    at, where = place(small), place(large)
    del small, large
    again = recycler.empty((LEAST // 4,))
    assert place(again) == at != where


@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_is_bounded(seed: int) -> None:
    """Whatever comes and goes: no two overlap, and not much more is held than was in use at once."""
    rng, recycler, used = np.random.default_rng(seed), Recycler(), list[np.ndarray]()
    most = 0
    for step in range(300):
        if used and rng.random() < 0.5:
            used.pop(rng.integers(len(used)))
        else:
            used.append(recycler.empty((int(rng.integers(LEAST // 4, 10 * LEAST)),)))
            used[-1][[0, -1]] = step
        spans = sorted((place(array), place(array) + array.nbytes) for array in used)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        most = max(most, recycler._used)
        held = recycler._used + sum(memory.nbytes for memory in recycler._free.values())
        assert held <= SLACK * most
        assert recycler._used <= WASTE * sum(array.nbytes for array in used) + (2 << 20)
    assert all(array[0] == array[-1] for array in used)


def test_results_of_a_recording_stay_its_own() -> None:
    """What a program writes at each replay is not given to others."""
    with Pool(2) as pool:
        x, weight = np.ones((64, 4096), np.float32), np.ones(4096, np.float32)
        with pool.record() as program:
            at = place(rms_norm(pool, x, weight, 1e-6))
        gc.collect()
        other = rms_norm(pool, 2 * x, weight, 1e-6)
        assert place(other) != at
        other[...] = 5.0
        program.replay()
        assert (other == 5.0).all()
