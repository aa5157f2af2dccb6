"""The latent KV cache in GPU memory: per layer a pool of 64-token pages, a row of C + R values per token, f16 or q8_0.

C = 512 latent values, R = 64 rotated key values shared by all heads. A slot is page * 64 + offset in the page. q8_0 is
ggml's, its codes and scales apart, so that a row's codes begin at a multiple of 16 bytes: 34 bytes for 32 values, and
the same values as cpu_kernels' blocks of the same numbers.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .device import Device
from .errors import GpuError
from .jit import jit, tl

PAGE = 64  # tokens; fixed: every kernel and the files of saved sessions depend on it
BLOCK = 32  # values of q8_0 under one scale


@dataclass(frozen=True)
class Layer:
    """One layer's cache. `len` is its number of pages."""

    values: torch.Tensor  # [pages, 64, W] float16, or int8 codes of q8_0
    scales: torch.Tensor | None  # float16 [pages, 64, W / 32] of q8_0

    def __len__(self) -> int:
        return len(self.values)

    @property
    def width(self) -> int:
        """Values per token, C + R."""
        return self.values.shape[2]

    @property
    def q8(self) -> bool:
        return self.scales is not None

    @property
    def planes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What kernels take: values and scales; for f16 the values again in the scales' place."""
        return self.values, self.values if self.scales is None else self.scales

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def rows(self, pages: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The tokens of pages [n], an integer tensor on the same device, in order: [n * 64, W]."""
        values = self.values.index_select(0, pages).reshape(-1, self.width).to(dtype)
        if self.scales is None:
            return values
        scales = self.scales.index_select(0, pages).reshape(len(values), -1, 1).to(dtype)
        return (values.reshape(len(values), -1, BLOCK) * scales).reshape(len(values), -1)

    def blocks(self) -> np.ndarray:
        """As cpu_kernels holds it: float16 [pages, 64, W], or uint8 [pages, 64, W / 32 * 34]."""
        if self.scales is None:
            return self.values.cpu().numpy()
        codes = self.values.view(torch.uint8).reshape(*self.scales.shape, BLOCK)
        scales = self.scales.unsqueeze(3).view(torch.uint8)
        return torch.cat((scales, codes), 3).flatten(2).cpu().numpy()

    @classmethod
    def from_blocks(cls, device: Device, blocks: np.ndarray) -> "Layer":
        """A copy of one of cpu_kernels' layers, float16 or uint8 (q8_0) as `blocks` returns them."""
        held = torch.from_numpy(blocks.copy()).to(device.torch_device)
        if held.dtype == torch.float16:
            return cls(held, None)
        if held.dtype != torch.uint8 or held.shape[2] % (BLOCK + 2):
            raise ValueError(f"Layer.from_blocks: float16 or q8_0 blocks of 34 bytes, got {blocks.dtype}{held.shape}")
        parts = held.reshape(*held.shape[:2], -1, BLOCK + 2)
        codes = parts[:, :, :, 2:].contiguous().view(torch.int8).flatten(2)
        return cls(codes, parts[:, :, :, :2].contiguous().view(torch.float16).squeeze(3))


def cache_layer(device: Device, pages: int, kv: str, width: int) -> Layer:
    """Zeros for `pages` pages of `width` values per token; kv "f16" or "q8_0". GpuError for "f32"."""
    if kv == "f32":
        limit = "attention on a GPU multiplies in float16 and would round every value that it reads"
        raise GpuError("a f32 cache on the GPU", limit, "use --kv f16 or --kv q8_0, or run with --device cpu")
    if kv not in ("f16", "q8_0"):
        raise ValueError(f"cache_layer: unknown cache type {kv!r}")
    if width % BLOCK and kv == "q8_0":
        raise ValueError(f"cache_layer: q8_0 needs a width in multiples of {BLOCK}, got {width}")
    if width % 8:
        raise ValueError(f"cache_layer: rows are read 16 bytes at a time: a width in multiples of 8, got {width}")
    shape, on = (pages, PAGE, width), device.torch_device
    if kv == "f16":
        return Layer(torch.zeros(shape, dtype=torch.float16, device=on), None)
    scales = torch.zeros((pages, PAGE, width // BLOCK), dtype=torch.float16, device=on)
    return Layer(torch.zeros(shape, dtype=torch.int8, device=on), scales)


cache_layer_twin = cache_layer  # nothing in it is a kernel


def check_layer(layer: Layer, latent: int, rope: int, verb: str) -> None:
    """`layer` must hold `latent` + `rope` values per token, for q8_0 both in whole blocks."""
    if layer.width != latent + rope:
        raise ValueError(f"{verb}: the cache holds {layer.width} values per token, {latent} + {rope} expected")
    if layer.q8 and (latent % BLOCK or rope % BLOCK):
        raise ValueError(f"{verb}: q8_0 needs latent and rope in multiples of {BLOCK}, got {latent} and {rope}")


def check_context(
    verb: str, tokens: int, block_table: torch.Tensor, sequence: torch.Tensor, positions: torch.Tensor
) -> None:
    """int32 [S, P], [T] and [T]. What they say lies on the GPU and is not looked at."""
    for tensor in (block_table, sequence, positions):
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"{verb}: block table, sequence and positions must be contiguous int32")
    if block_table.ndim != 2 or sequence.shape != (tokens,) or positions.shape != (tokens,):
        found = f"block table {tuple(block_table.shape)}, sequence {tuple(sequence.shape)}"
        raise ValueError(f"{verb}: {found}, positions {tuple(positions.shape)} for {tokens} queries")


@jit
def saturated_half(x):
    """float32 -> float16, to nearest even; beyond its range +-65504, as on the CPU; NaN stays NaN.

    An infinite cached value would turn every later score of the sequence into NaN.
    """
    x = tl.where(x > 65504.0, 65504.0, x)
    return tl.where(x < -65504.0, -65504.0, x).to(tl.float16)


@jit
def quantize_q8_0(x):
    """float32 [n, 32] -> codes int8 [n, 32] and scales float16 [n], bit for bit as cpu_kernels and ggml's reference.

    The unrounded scale divides, halves round away from zero. A NaN becomes its block's scale.
    """
    magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # ordered like |x|, and NaN is above Inf
    scale = tl.div_rn(tl.max(magnitude, 1).to(tl.float32, bitcast=True), 127.0)
    inverse = tl.where(scale == 0.0, 0.0, tl.div_rn(1.0, tl.where(scale == 0.0, 1.0, scale)))
    scaled = x * inverse[:, None]
    scaled = tl.where(tl.abs(scaled) < 1e6, scaled, 0.0)  # neither NaN nor Inf, of a scale below the normal numbers
    # Halves away from zero without an addition, which a compiler may fuse with the product above.
    rounded = ((tl.abs(scaled) * 2.0).to(tl.int32) + 1) >> 1
    return tl.where(scaled < 0.0, -rounded, rounded).to(tl.int8), saturated_half(scale)


@jit
def store_cached(
    values,
    scales,
    slot,
    x,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    Q8: tl.constexpr,
):
    """Columns FIRST .. FIRST + COUNT - 1 of cache row `slot` become the first COUNT of x, float32 [SIZE].

    SIZE: a power of two >= COUNT and 32; x is 0 from COUNT on. Of q8_0 FIRST and COUNT are multiples of 32. `values`
    and `scales` are `Layer.planes`.
    """
    column = tl.arange(0, SIZE)
    at = values + slot.to(tl.int64) * WIDTH + FIRST + column
    if Q8:
        codes, scale = quantize_q8_0(tl.reshape(x, (SIZE // 32, 32)))
        tl.store(at, tl.reshape(codes, (SIZE,)), mask=column < COUNT)
        block = tl.arange(0, SIZE // 32)
        tl.store(scales + slot.to(tl.int64) * (WIDTH // 32) + FIRST // 32 + block, scale, mask=block < COUNT // 32)
    else:
        tl.store(at, saturated_half(x), mask=column < COUNT)
