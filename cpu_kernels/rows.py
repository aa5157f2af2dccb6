"""What verbs on independent float32 rows share: the checks, and whether waking the other threads pays."""

from typing import Any

import numpy as np

from .atomic import call_job
from .jit import device
from .pool import dispatch

SERIAL_VALUES = 1 << 14  # up to here (2 us of arithmetic) the caller works alone


@device
def share(control, job, arguments, values):
    """Run a job on all threads, or, where it touches few values, as if the caller were the only one."""
    if values <= SERIAL_VALUES:
        call_job(job, arguments, 0, 1)
    else:
        dispatch(control, job, arguments)


def check_floats(verb: str, **arrays: np.ndarray) -> None:
    """Each must be float32 with values side by side in a row."""
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ValueError(f"{verb}: float32 expected, {name} is {array.dtype}")
        if array.size and array.strides[-1] != 4:
            raise ValueError(f"{verb}: the values of a row of {name} must lie side by side")


def bits(x: float) -> Any:
    """A float64 as an int64 argument."""
    return np.float64(x).view(np.int64)
