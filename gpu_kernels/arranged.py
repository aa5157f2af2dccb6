"""Activations in the order in which products read them. T rows of x, K columns, S = K / 32 sub-blocks.

values[t, p, 4 s + i] = x[t, 32 s + 4 p + i]: at each position p of a sub-block, the four lanes' activations are 16
bytes (formats/format.py), and neighbouring threads, which have neighbouring sub-blocks, read neighbouring bytes.
"""

from dataclasses import dataclass
from math import prod

import torch

from .device import Device
from .formats import SUB_BLOCK
from .jit import cdiv, jit, next_power_of_2, tl

VECTOR_COLUMNS = 4  # so many tokens are multiplied by the matvec, in float32; more as float16, by tensor cores
BLOCK = 64  # sub-blocks of a program


@dataclass(frozen=True)
class Arranged:
    """x[..., K] = scale[..., None] * values, put back in order; T rows.

    values   [T, 8, K / 8], float32 or float16. float16 values of a row are below 2**8 in magnitude
    sums     float32 [T, S]: of the values of each sub-block, as they are stored
    scale    float32 [T], powers of two, of float16 values; None for float32
    shape    of x without K; natural: x itself, where the producer keeps it
    """

    values: torch.Tensor
    sums: torch.Tensor
    scale: torch.Tensor | None
    shape: tuple[int, ...]
    natural: torch.Tensor | None = None

    @property
    def columns(self) -> int:
        return self.sums.shape[1] * SUB_BLOCK

    def plain(self) -> torch.Tensor:
        """x as the products see it, float32 [..., K]."""
        rows, _, width = self.values.shape
        x = self.values.view(rows, 8, width // 4, 4).transpose(1, 2).reshape(rows, 8 * width).float()
        if self.scale is not None:
            x = x * self.scale[:, None]
        return x.view(*self.shape, self.columns)


@jit
def arranged_offset(column, S: tl.constexpr):
    """Where a row's column lies among its values."""
    return ((column >> 2) & 7) * (4 * S) + (column >> 5) * 4 + (column & 3)


@jit
def store_arranged(values, sums, token, x, column, mask, S: tl.constexpr):
    """For producers: float32 x [n], n a multiple of 32, at `column` [n] of row `token` -> its values and sums.

    column[0] divides by 32; mask: column < K, and x is 0 elsewhere.
    """
    row = token.to(tl.int64) * (32 * S)
    tl.store(values + row + arranged_offset(column, S), x, mask=mask)
    n: tl.constexpr = x.shape[0] // 32
    s = tl.min(column, axis=0) // 32 + tl.arange(0, n)
    tl.store(sums + token * S + s, tl.sum(tl.reshape(x, [n, 32]), axis=1), mask=s < S)


@jit
def _tile_offsets(s):
    """Columns of sub-blocks s [n] -> [n, 8, 4], and where they are stored."""
    p = tl.arange(0, 8)[None, :, None]
    i = tl.arange(0, 4)[None, None, :]
    return s[:, None, None] * 32 + p * 4 + i, p, s[:, None, None] * 4 + i


@jit
def _arrange_kernel(x, values, sums, stride, S: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column, p, at = _tile_offsets(s)
    inside = (s < S)[:, None, None]
    tile = tl.load(x + token * stride + column, mask=inside, other=0.0)
    tl.store(values + token * (32 * S) + p * (4 * S) + at, tile, mask=inside)
    tl.store(sums + token * S + s, tl.sum(tl.sum(tile, axis=2), axis=1), mask=s < S)


@jit
def half_factors(largest):
    """What a row of this largest magnitude is multiplied by to be float16, below 2**8; and its products afterwards."""
    # The exponent field: 2**7 <= largest x 2**(134 - exponent) < 2**8. Beyond 8 .. 254 the factors would not be finite.
    exponent = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 8), 254)
    return ((261 - exponent) << 23).to(tl.float32, bitcast=True), ((exponent - 7) << 23).to(tl.float32, bitcast=True)


@jit
def _arrange_half_kernel(x, values, sums, scale, stride, S: tl.constexpr, BLOCK: tl.constexpr):
    """One program a row: its largest magnitude first, then the values; the row stays in the caches between."""
    token = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, S, BLOCK):
        s = start + tl.arange(0, BLOCK)
        column, p, at = _tile_offsets(s)
        tile = tl.abs(tl.load(x + token * stride + column, mask=(s < S)[:, None, None], other=0.0))
        tile = tl.where(tile == tile, tile, 0.0)  # NaN stays in the values, not in the scale
        largest = tl.maximum(largest, tl.max(tl.max(tile, axis=2), axis=1))
    down, up = half_factors(tl.max(largest, axis=0))
    tl.store(scale + token, up)
    for start in range(0, S, BLOCK):
        s = start + tl.arange(0, BLOCK)
        column, p, at = _tile_offsets(s)
        inside = (s < S)[:, None, None]
        tile = (tl.load(x + token * stride + column, mask=inside, other=0.0) * down).to(tl.float16)
        tl.store(values + token * (32 * S) + p * (4 * S) + at, tile, mask=inside)
        tl.store(sums + token * S + s, tl.sum(tl.sum(tile.to(tl.float32), axis=2), axis=1), mask=s < S)


def check_activations(name: str, x: torch.Tensor) -> None:
    """float32 [..., K], at least two axes, K a multiple of 32."""
    if x.dtype != torch.float32 or x.ndim < 2 or x.shape[-1] % SUB_BLOCK or not x.shape[-1]:
        raise ValueError(f"{name}: x is {x.dtype} {list(x.shape)}; needed is float32 [T, ..., K], K a multiple of 32")


def arrange(device: Device, x: torch.Tensor, half: bool | None = None) -> Arranged:
    """float32 x[T, ..., K] -> Arranged; `half`: as float16 with scales, by default for more than VECTOR_COLUMNS tokens.

    Rows may lie apart when x has two axes; else x is contiguous, or copied.
    """
    check_activations("arrange", x)
    shape, blocks = tuple(x.shape[:-1]), x.shape[-1] // SUB_BLOCK
    rows = x if x.ndim == 2 and x.stride(1) == 1 else x.reshape(prod(shape), -1).contiguous()
    half = shape[0] > VECTOR_COLUMNS if half is None else half
    values = device.empty((len(rows), 8, 4 * blocks), torch.float16 if half else torch.float32)
    sums = device.empty((len(rows), blocks))
    block = min(BLOCK, next_power_of_2(blocks))
    if not half:
        if len(rows):
            grid = len(rows), cdiv(blocks, block)
            device.launch(_arrange_kernel, grid, rows, values, sums, rows.stride(0), S=blocks, BLOCK=block)
        return Arranged(values, sums, None, shape)
    scale = device.empty((len(rows),))
    if len(rows):
        device.launch(
            _arrange_half_kernel, (len(rows),), rows, values, sums, scale, rows.stride(0), S=blocks, BLOCK=block
        )
    return Arranged(values, sums, scale, shape)


def arrange_twin(device: Device, x: torch.Tensor, half: bool | None = None) -> Arranged:
    check_activations("arrange", x)
    shape, blocks = tuple(x.shape[:-1]), x.shape[-1] // SUB_BLOCK
    half = shape[0] > VECTOR_COLUMNS if half is None else half
    tiles = x.reshape(prod(shape), blocks, 8, 4)
    scale = None
    if half:
        largest = torch.nan_to_num(tiles.abs(), nan=0.0, posinf=torch.inf).amax(dim=(1, 2, 3))
        exponent = (largest.view(torch.int32) >> 23).clamp(8, 254)
        scale = ((exponent - 7) << 23).view(torch.float32)
        tiles = (tiles * ((261 - exponent) << 23).view(torch.float32).view(-1, 1, 1, 1)).half()
    values = tiles.transpose(1, 2).reshape(len(tiles), 8, 4 * blocks)
    return Arranged(values, tiles.float().sum(dim=(2, 3)), scale, shape)
