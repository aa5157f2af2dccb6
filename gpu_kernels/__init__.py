"""GPU kernels in Triton, each beside its plain-torch twin. The verbs and their meaning are those of cpu_kernels.

Importing this package imports neither torch nor Triton; the modules of the verbs load when one is first named. No
module has the name of a verb: once imported, it would stand in the verb's place.

A kernel is a body, a wrapper that checks shapes, owns the grid and launches, and a twin:

    from .jit import cdiv, jit, tl

    @jit
    def _scale_kernel(x, y, count, factor, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + at, tl.load(x + at, mask=at < count) * factor, mask=at < count)

    def scale(device: Device, x: torch.Tensor, factor: float) -> torch.Tensor:
        y = device.empty(x.shape)
        device.launch(_scale_kernel, (cdiv(x.numel(), 1024),), x, y, x.numel(), factor, warps=4, BLOCK=1024)
        return y

    def scale_twin(device: Device, x: torch.Tensor, factor: float) -> torch.Tensor:
        return x * factor

`launch` takes the kernel's parameters in order, without its constexprs, which follow by name. Tensors pass their
address, ints are int32 (int64 beyond 2**31), floats float32. Pointers and ints that divide by 16 get a kernel of their
own with wider loads: one more compilation for an int that is only sometimes so. `@jit(do_not_specialize=["count"])`
says not to, for ints that vary from call to call. An offset that may pass 2**31 elements needs `.to(tl.int64)`.
`if INTERPRETED:` in a kernel takes a way around what Triton's interpreter cannot do (inline assembly, bfloat16).
Tests: tests/gpu_interpreter.py (numerics), tests/gpu_compile.py (registers, spills, shared memory, assembly).
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import GpuError

if TYPE_CHECKING:
    from .device import Device

__all__ = [
    "Arranged",
    "Device",
    "Gated",
    "GpuError",
    "Matrix",
    "Resident",
    "arrange",
    "cache_layer",
    "dequantize",
    "ffn",
    "linear",
    "linear_heads",
    "linear_heads_transposed",
    "mla_absorbed",
    "mla_expanded",
    "ring",
    "rms_norm",
    "rope",
    "route",
    "routed_experts",
    "silu_multiply",
    "take",
    "wait_by_polling",
    "write_latent",
]

# Verb or class -> its module.
_HOME = {
    "Arranged": "arranged",
    "Device": "device",
    "Gated": "gated",
    "Matrix": "matrix",
    "Resident": "resident",
    "arrange": "arranged",
    "cache_layer": "cache",
    "dequantize": "dequantization",
    "ffn": "gated",
    "linear": "products",
    "linear_heads": "heads",
    "linear_heads_transposed": "heads",
    "mla_absorbed": "attention_absorbed",
    "mla_expanded": "attention_expanded",
    "ring": "doorbell",
    "rms_norm": "norm_rope",
    "rope": "norm_rope",
    "route": "router",
    "routed_experts": "experts",
    "silu_multiply": "silu",
    "take": "doorbell",
    "wait_by_polling": "doorbell",
    "write_latent": "latent",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
