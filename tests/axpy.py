"""A kernel for the tests of what runs kernels: arguments of every kind, a mask, a device function, inline assembly."""

from typing import Any

import torch

from gpu_kernels.device import Device
from gpu_kernels.jit import INTERPRETED, cdiv, jit, tl


@jit
def _double(x):
    if INTERPRETED:
        doubled = x + x
    else:
        doubled = tl.inline_asm_elementwise("add.f32 $0, $1, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return doubled


@jit(do_not_specialize=["skipped"])
def axpy_kernel(x, y, bias, count, far, skipped, a, negate, BLOCK: tl.constexpr, TWICE: tl.constexpr = False):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = (at >= skipped) & (at < count)
    v = tl.load(x + at, mask=here, other=0.0).to(tl.float32) * a
    if TWICE:
        v = _double(v)
    if bias is not None:
        v += tl.load(bias + at, mask=here, other=0.0)
    if negate:
        v = -v
    if far > (1 << 33):  # an int64: its upper half counts
        v = v * 0.5
    tl.store(y + at, tl.load(y + at, mask=here) + v, mask=here)


def axpy(
    device: Device,
    a: float,
    x: torch.Tensor,
    y: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    skipped: int = 0,
    negate: bool = False,
    far: int = 1 << 33,
    **options: Any,
) -> None:
    """y[skipped:] += +-(a x + bias)[skipped:], half of it if far > 2**33; TWICE=True: 2 a x; `options` of `launch`."""
    options = {"BLOCK": 1024} | options
    grid = (cdiv(x.numel(), 1024),)
    device.launch(axpy_kernel, grid, x, y, bias, x.numel(), far, skipped, a, negate, **options)


def axpy_twin(
    a: float, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None, skipped: int, negate: bool, far: int
) -> None:
    """`axpy` in plain torch."""
    v = torch.tensor(a) * x.float() + (0.0 if bias is None else bias)
    y[skipped:] += ((-v if negate else v) * (0.5 if far > 1 << 33 else 1.0))[skipped:]
