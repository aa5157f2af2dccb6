"""CPU kernels, compiled by numba for the CPU they run on. The verbs and their meaning are those of gpu_kernels."""

from .attention_absorbed import mla_absorbed
from .attention_expanded import mla_expanded
from .cache import cache_layer, read_cache, write_cache
from .dequantize import dequantize, embed
from .experts import ffn, routed_experts
from .jit import CACHED
from .linear import linear, linear_heads
from .matrix import SUPPORTED, Matrix
from .norm_rope import rms_norm, rope
from .pool import Pool
from .route import route
from .transposed import linear_heads_transposed

__all__ = [
    "CACHED",
    "SUPPORTED",
    "Matrix",
    "Pool",
    "cache_layer",
    "dequantize",
    "embed",
    "ffn",
    "linear",
    "linear_heads",
    "linear_heads_transposed",
    "mla_absorbed",
    "mla_expanded",
    "read_cache",
    "rms_norm",
    "rope",
    "route",
    "routed_experts",
    "write_cache",
]
