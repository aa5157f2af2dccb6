"""CPU kernels, compiled by numba for the CPU they run on. The verbs and their meaning are those of gpu_kernels."""

from .dequantize import dequantize, embed
from .experts import ffn, routed_experts
from .linear import linear, linear_heads
from .matrix import SUPPORTED, Matrix
from .pool import Pool
from .transposed import linear_heads_transposed

__all__ = [
    "SUPPORTED",
    "Matrix",
    "Pool",
    "dequantize",
    "embed",
    "ffn",
    "linear",
    "linear_heads",
    "linear_heads_transposed",
    "routed_experts",
]
