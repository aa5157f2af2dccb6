"""Softmax over a stream of tiles of keys: nothing overflows, no row of scores is ever whole.

Per query row the stream keeps a state (highest score, sum of e^(score - highest)) and the sum of the values weighted by
e^(score - highest), all float32; when a tile brings a higher score, both are scaled down.
"""

import numpy as np
from numba import carray

from .jit import kernel
from .memory import f32_at
from .simd import exp, fmax, lane, load_f32, load_f32x8, reduce_add, splat_f32x8, store

LOWEST = np.float32(-1e30)  # below any score, and finite: the difference of two of them is 0, not NaN


@kernel
def clear_rows(state, sums, stride, rows):
    """Nothing attended yet."""
    states = carray(f32_at(state), (rows, 2))
    for r in range(rows):
        states[r, 0], states[r, 1] = LOWEST, 0.0
    values = carray(f32_at(sums), (rows * stride,))
    for i in range(values.size):
        values[i] = 0.0


@kernel
def scalar_exp(x):
    return lane(exp(splat_f32x8(x)), 0)


@kernel
def _raise_peak(scores, end, state, sums, columns):
    """The highest score up to now; what was summed under a lower one is scaled down."""
    before = load_f32(state)
    peaks = splat_f32x8(before)
    for at in range(scores, end, 32):
        peaks = fmax(load_f32x8(at), peaks)
    highest = before
    for i in range(8):
        highest = max(highest, lane(peaks, i))
    if highest > before:
        factor = scalar_exp(before - highest)
        for at in range(sums, sums + 4 * columns, 32):
            store(at, load_f32x8(at) * factor)
        store(state, highest)
        store(state + 4, load_f32(state + 4) * factor)
    return highest


@kernel
def softmax_tile(scores, visible, keys, state, sums, columns):
    """A row's scores[keys], with room for whole vectors, become weights, 0 from `visible` on; columns % 8 = 0."""
    end = scores + 32 * ((visible + 7) // 8)
    for at in range(scores + 4 * visible, end, 4):
        store(at, LOWEST)
    highest = _raise_peak(scores, end, state, sums, columns)
    total = splat_f32x8(np.float32(0.0))
    for at in range(scores, end, 32):
        weights = exp(load_f32x8(at) - highest)
        store(at, weights)
        total = total + weights
    for at in range(scores + 4 * visible, scores + 4 * keys, 4):
        store(at, np.float32(0.0))
    store(state + 4, load_f32(state + 4) + reduce_add(total))
