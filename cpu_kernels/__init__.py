"""CPU kernels, compiled by numba for the CPU they run on. The verbs and their meaning are those of gpu_kernels."""

from .pool import Pool

__all__ = ["Pool"]
