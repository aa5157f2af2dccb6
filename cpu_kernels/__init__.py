"""CPU kernels, compiled by numba for the CPU they run on. The verbs and their meaning are those of gpu_kernels."""

from .linear import dequantize, embed, linear, linear_heads
from .matrix import SUPPORTED, Matrix
from .pool import Pool

__all__ = ["SUPPORTED", "Matrix", "Pool", "dequantize", "embed", "linear", "linear_heads"]
