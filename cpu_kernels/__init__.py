"""CPU kernels, compiled by numba for the CPU they run on. The verbs and their meaning are those of gpu_kernels.

Importing this package compiles nothing; the modules of the verbs, and their jobs, load when one is first named.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .jit import CACHED, note_compiled
from .matrix import SUPPORTED, Matrix

if TYPE_CHECKING:
    from .arrange import interleave
    from .attention_absorbed import mla_absorbed
    from .attention_expanded import mla_expanded
    from .cache import cache_layer, read_cache, write_cache
    from .embedding import dequantize, embed
    from .experts import ffn, routed_experts
    from .latent import write_latent
    from .matmul import linear, linear_heads
    from .norm_rope import rms_norm, rope
    from .pool import Pool
    from .router import route
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
    "interleave",
    "linear",
    "linear_heads",
    "linear_heads_transposed",
    "mla_absorbed",
    "mla_expanded",
    "note_compiled",
    "read_cache",
    "rms_norm",
    "rope",
    "route",
    "routed_experts",
    "write_cache",
    "write_latent",
]

# No module has the name of a verb: once imported, it would stand in the verb's place.
_HOME = {
    "Pool": "pool",
    "cache_layer": "cache",
    "dequantize": "embedding",
    "embed": "embedding",
    "ffn": "experts",
    "interleave": "arrange",
    "linear": "matmul",
    "linear_heads": "matmul",
    "linear_heads_transposed": "transposed",
    "mla_absorbed": "attention_absorbed",
    "mla_expanded": "attention_expanded",
    "read_cache": "cache",
    "rms_norm": "norm_rope",
    "rope": "norm_rope",
    "route": "router",
    "routed_experts": "experts",
    "write_cache": "cache",
    "write_latent": "latent",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
