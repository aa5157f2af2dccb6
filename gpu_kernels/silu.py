"""SiLU(gate) * up, between the two products of a feed-forward network. T tokens, F hidden values."""

import torch

from .arranged import Arranged, arrange_twin
from .device import Device
from .jit import cdiv, jit, tl

BLOCK = 1024


@jit
def _hidden(both, token, column, inside, F):
    gate = tl.load(both + token * 2 * F + column, mask=inside, other=0.0)
    up = tl.load(both + token * 2 * F + F + column, mask=inside, other=0.0)
    return gate / (1.0 + tl.exp(-gate)) * up  # of a very negative gate: -0


@jit
def _silu_kernel(both, out, F, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + token * F + column, _hidden(both, token, column, column < F, F), mask=column < F)


@jit
def _silu_arranged_kernel(both, values, sums, F, S: tl.constexpr, BS: tl.constexpr):
    """Programs (token, BS of the S sub-blocks); in tiles [BS, 8, 4], whose last axis is 16 bytes on both sides."""
    token = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * BS + tl.arange(0, BS)
    p = tl.arange(0, 8)[None, :, None]
    i = tl.arange(0, 4)[None, None, :]
    inside = (s < S)[:, None, None]
    hidden = _hidden(both, token, s[:, None, None] * 32 + p * 4 + i, inside, F)  # 0 outside
    tl.store(values + token * F + p * (4 * S) + (s[:, None, None] * 4 + i), hidden, mask=inside)
    tl.store(sums + token * S + s, tl.sum(tl.sum(hidden, 2), 1), mask=s < S)


def silu_multiply(device: Device, both: torch.Tensor, arranged: bool = False) -> torch.Tensor | Arranged:
    """both[T, 2 F], gate | up, contiguous -> SiLU(gate) * up [T, F]; or that, float32, arranged for a product."""
    tokens, hidden = _shape(both, arranged)
    grid = tokens, cdiv(hidden, BLOCK)
    if not arranged:
        out = device.empty((tokens, hidden))
        if out.numel():
            device.launch(_silu_kernel, grid, both, out, hidden, BLOCK=BLOCK)
        return out
    values, sums = device.empty((tokens, 8, hidden // 8)), device.empty((tokens, hidden // 32))
    if values.numel():
        blocks = hidden // 32
        device.launch(_silu_arranged_kernel, grid, both, values, sums, hidden, S=blocks, BS=BLOCK // 32)
    return Arranged(values, sums, None, (tokens,))


def _shape(both: torch.Tensor, arranged: bool) -> tuple[int, int]:
    if both.ndim != 2 or both.shape[1] % 2 or both.dtype != torch.float32 or not both.is_contiguous():
        raise ValueError(
            f"silu_multiply: both is {both.dtype} {list(both.shape)}, strides {both.stride()}; needed is a contiguous "
            "float32 [T, 2 F]"
        )
    if arranged and both.shape[1] % 64:
        raise ValueError(f"silu_multiply: {both.shape[1] // 2} hidden values are no multiple of 32, so not arranged")
    return both.shape[0], both.shape[1] // 2


def silu_multiply_twin(device: Device, both: torch.Tensor, arranged: bool = False) -> torch.Tensor | Arranged:
    _shape(both, arranged)
    gate, up = both.chunk(2, dim=1)
    hidden = gate / (1 + torch.exp(-gate)) * up
    return arrange_twin(device, hidden, half=False) if arranged else hidden
