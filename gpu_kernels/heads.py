"""A matrix for each head: T tokens, H heads, N rows and K columns of a head's matrix.

linear_heads              y[t, h, n] = sum over k of x[t, h, k] W[h, n, k]
linear_heads_transposed   y[t, h, k] = sum over n of x[t, h, n] W[h, n, k]: the same blocks from their other side, for
                          the key half of an unsplit attn_kv_b, which is never quantized anew

Few tokens: the matrices are decoded in registers (linear_heads: the tile of matmul.py with a program axis for heads).
From DENSE_TOKENS on: groups of heads as float16 in at most SCRATCH bytes and torch's batched product.
"""

from collections.abc import Iterator

import torch

from .dequantization import dequantize, dequantize_twin
from .device import Device
from .jit import cdiv, jit, next_power_of_2, tl
from .matmul import multiply_tiles
from .matrix import Matrix
from .matvec import matvec
from .products import (
    SCRATCH,
    VECTOR_TOKENS,
    Activations,
    arranged_as,
    check_rows,
    half_product,
    halves,
    plain,
    result,
    token_count,
)

DENSE_TOKENS = 64  # to be measured; see docs/gpu.md
MOST_ROWS = 256  # of a transposed matrix that the kernel holds at once
TOKENS = 16  # of a transposed product


@jit(do_not_specialize=["tokens", "rows", "token_stride", "head_stride"])
def _transposed(
    codes,
    high,
    scales,
    blocks,
    x,  # float32 [T, H, N], any outer strides
    y,  # float32 [T, H, 32 S]
    tokens,
    rows,
    token_stride,
    head_stride,
    S: tl.constexpr,
    GROUPS: tl.constexpr,
    HALVES: tl.constexpr,
    MINIMUM: tl.constexpr,
    SCALED: tl.constexpr,
    UNPACK: tl.constexpr,
    CODE: tl.constexpr,
    SCALE: tl.constexpr,
    BN: tl.constexpr,
    BT: tl.constexpr,
    BS: tl.constexpr,
):
    """grid (token tiles, tiles of sub-blocks, heads); BN: all rows. A word's eight positions are eight products"""
    head = tl.program_id(2)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    n = tl.arange(0, BN)
    s = (tl.program_id(1) * BS + tl.arange(0, BS))[None, :]
    row = (head.to(tl.int64) * rows + tl.minimum(n, rows - 1))[:, None]
    inside = None if S % BS == 0 else s < S
    # Rows past the end are the last once more, times 0. A power of two brings a row of x into float16's range.
    at = x + t[:, None].to(tl.int64) * token_stride + head.to(tl.int64) * head_stride + n[None, :]
    value = tl.load(at, mask=(t < tokens)[:, None] & (n < rows)[None, :], other=0.0)
    exponent = (tl.max(tl.abs(value), 1).to(tl.int32, bitcast=True) >> 23) - 127 - 7  # largest -> [2^7, 2^8)
    exponent = tl.minimum(tl.maximum(exponent, -126), 120)
    factor = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    back = ((127 + exponent) << 23).to(tl.float32, bitcast=True)[:, None]
    value = (value * factor[:, None]).to(tl.float16)
    if SCALED:
        low, upper, minimum = SCALE(scales, blocks, row, s, inside, S)
    PER_GROUP: tl.constexpr = 8 // GROUPS
    j = tl.program_id(1) * BS * 4 + tl.arange(0, 4 * BS)
    column = j // 4 * 32 + j % 4
    target = y + ((t.to(tl.int64) * tl.num_programs(2) + head) * (32 * S))[:, None] + column[None, :]
    store = (t < tokens)[:, None] & (j < 4 * S)[None, :]
    for group in tl.static_range(GROUPS):
        words, more = UNPACK(codes, high, row, s, inside, S, group)
        for place in tl.static_range(PER_GROUP):
            weight = CODE(words, more, place)
            if SCALED:
                weight = weight * (upper if HALVES == 2 and group * PER_GROUP + place >= 4 else low)[:, :, None]
            if MINIMUM:
                weight = weight - minimum[:, :, None]
            weight = weight.to(tl.float16).reshape((BN, 4 * BS))
            tl.store(target + 4 * (group * PER_GROUP + place), tl.dot(value, weight) * back, mask=store)


def _check(w: Matrix, x: Activations, inner: int) -> int:
    check_rows("x", x, (token_count(x), w.count, inner))
    return token_count(x)


def _slabs(w: Matrix) -> Iterator[tuple[int, int]]:
    """[first, last) of rows whose float16 values, of all heads, fit in SCRATCH bytes"""
    most = max(1, SCRATCH // (2 * w.columns * w.count))
    for first in range(0, w.rows, most):
        yield first, min(first + most, w.rows)


def _dense(device: Device, w: Matrix, x: Activations, out: torch.Tensor, transposed: bool) -> None:
    """By batched products in float16, or in float32 of float32 weights"""
    full = w.type == "F32"
    values, scale = (plain(x), torch.ones(1, device=out.device)) if full else halves(x)
    values = values.transpose(0, 1)  # [H, T, K]
    for first, last in _slabs(w):
        weights = dequantize(device, w, rows=(first, last), dtype=torch.float32 if full else torch.float16)
        weights = weights.view(w.count, last - first, w.columns)
        a, b = (values[:, :, first:last], weights) if transposed else (values, weights.transpose(1, 2))
        y = (torch.bmm(a, b) if full else half_product(a, b)).transpose(0, 1)
        if transposed and first:
            out.addcmul_(y, scale)
        else:
            torch.mul(y, scale, out=out if transposed else out[:, :, first:last])


def linear_heads(device: Device, w: Matrix, x: Activations, out: torch.Tensor | None = None) -> torch.Tensor:
    """Head h of x[T, H, K] times matrix h -> [T, H, N]; x may have any outer strides."""
    tokens = _check(w, x, w.columns)
    out = result(device, out, (tokens, w.count, w.rows))
    if not out.numel():
        return out
    if w.format is None or w.type == "F32" or tokens >= DENSE_TOKENS:
        _dense(device, w, x, out, transposed=False)
        return out
    if tokens <= VECTOR_TOKENS:
        matvec(device, w, arranged_as(device, x, half=False), out)
    else:
        multiply_tiles(device, w, arranged_as(device, x, half=True), out.view(tokens, -1))
    return out


def linear_heads_transposed(
    device: Device, w: Matrix, x: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Head h of x[T, H, N], any outer strides, times matrix h from the left -> [T, H, K]"""
    tokens = _check(w, x, w.rows)
    out = result(device, out, (tokens, w.count, w.columns))
    if not out.numel():
        return out
    if w.format is None or w.type == "F32" or w.rows > MOST_ROWS or tokens >= DENSE_TOKENS:
        _dense(device, w, x, out, transposed=True)
        return out
    blocks = w.columns // 32
    how = dict(warps=4, stages=1, BN=max(16, next_power_of_2(w.rows)), BT=TOKENS, BS=8)
    grid = cdiv(tokens, TOKENS), cdiv(blocks, how["BS"]), w.count
    sizes = tokens, w.rows, x.stride(0), x.stride(1)
    device.launch(_transposed, grid, *w.planes, x, out, *sizes, **how, **w.constants)
    return out


def linear_heads_twin(device: Device, w: Matrix, x: Activations, out: torch.Tensor | None = None) -> torch.Tensor:
    tokens = _check(w, x, w.columns)
    out = result(device, out, (tokens, w.count, w.rows))
    out.copy_(torch.einsum("thk,hnk->thn", plain(x), _float_heads(device, w)))
    return out


def linear_heads_transposed_twin(
    device: Device, w: Matrix, x: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    tokens = _check(w, x, w.rows)
    out = result(device, out, (tokens, w.count, w.columns))
    out.copy_(torch.einsum("thn,hnk->thk", plain(x), _float_heads(device, w)))
    return out


def _float_heads(device: Device, w: Matrix) -> torch.Tensor:
    """float32 [H, N, K]"""
    return dequantize_twin(device, w, dtype=torch.float32).view(w.count, w.rows, w.columns)
