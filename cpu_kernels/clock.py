"""The time, read by an entry of the pool: inside a recorded program the clock is read again at every replay."""

import numpy as np

from .atomic import monotonic, store_i64
from .jit import entry
from .pool import Pool


@entry
def _stamp(control, arguments):
    store_i64(arguments, monotonic())


def stamp(pool: Pool) -> np.ndarray:
    """int64 [1]: nanoseconds of a clock that only goes forward, of this call, or of its last replay."""
    time = np.zeros(1, np.int64)
    pool.call(_stamp.address, time)
    return time
