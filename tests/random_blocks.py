"""Random but valid quantization blocks of a given standard deviation: large files without a quantizer.

Quantized values are uniform over their levels, scales fixed or nearly so (codebook formats: uniform), and every block
has mean zero.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

CHUNK_BYTES = 128 << 20
Fill = Callable[[np.random.Generator, np.ndarray, float], None]


def uniform_std(levels: int) -> float:
    """Standard deviation of an integer uniform over `levels` neighbouring values."""
    return math.sqrt((levels**2 - 1) / 12)


def rms(integers: range) -> float:
    return math.sqrt(float(np.mean(np.arange(integers.start, integers.stop) ** 2.0)))


def put_f16(blocks: np.ndarray, offset: int, value: np.ndarray | float) -> None:
    blocks[:, offset : offset + 2] = np.full(len(blocks), value).astype(np.float16).reshape(-1, 1).view(np.uint8)


def signs(rng: np.random.Generator, shape: int | tuple[int, ...]) -> np.ndarray:
    return rng.choice(np.array([-1.0, 1.0]), size=shape)


def fill_f32(rng: np.random.Generator, blocks: np.ndarray, std: float) -> None:
    blocks[:] = (rng.standard_normal((len(blocks), 1), dtype=np.float32) * np.float32(std)).view(np.uint8)


def fill_q4_k(rng: np.random.Generator, blocks: np.ndarray, std: float) -> None:
    """value = d*scale*q - dmin*min with min = scale, dmin = 7.5 d: mean zero. Eight 6-bit scales in 32..63."""
    scales = rng.integers(32, 64, size=(len(blocks), 8), dtype=np.uint8)
    low, high = scales[:, :4], scales[:, 4:]
    d = std / (uniform_std(16) * rms(range(32, 64)))
    put_f16(blocks, 0, d)
    put_f16(blocks, 2, 7.5 * d)
    blocks[:, 4:8] = blocks[:, 8:12] = low | ((high >> 4) << 6)
    blocks[:, 12:16] = (high & 15) | ((high & 15) << 4)


def fill_q6_k(rng: np.random.Generator, blocks: np.ndarray, std: float) -> None:
    scales = rng.integers(32, 128, size=(len(blocks), 16)) * signs(rng, (len(blocks), 16))
    blocks[:, 192:208] = scales.astype(np.int8).view(np.uint8)
    put_f16(blocks, 208, std / (uniform_std(64) * rms(range(32, 128))))


def fill_q5_0(rng: np.random.Generator, blocks: np.ndarray, std: float) -> None:
    put_f16(blocks, 0, signs(rng, len(blocks)) * std / uniform_std(32))


def fill_q8_0(rng: np.random.Generator, blocks: np.ndarray, std: float) -> None:
    values = blocks[:, 2:].view(np.int8)
    np.maximum(values, -127, out=values)  # no quantizer emits -128
    put_f16(blocks, 0, signs(rng, len(blocks)) * std / uniform_std(255))


def fill_codebook(quant: Any, unit: float, scales: int) -> Fill:
    """value = d * unit * (2 s + 1) * entry, with s below `scales` and entries uniform, all random bits."""

    def fill(rng: np.random.Generator, blocks: np.ndarray, std: float) -> None:
        quant.init_grid()
        entries = np.square(quant.grid).mean() + (quant.delta**2 if hasattr(quant, "delta") else 0)
        d = signs(rng, len(blocks)) * std / (unit * math.sqrt(entries) * rms(range(1, 2 * scales, 2)))
        if quant is not gguf.quants.IQ1_M:
            return put_f16(blocks, 0, d)
        quarters = d.astype(np.float16).view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        blocks[:, 49::2] = blocks[:, 49::2] & 15 | quarters.astype(np.uint8) << 4

    return fill


FILL: dict[Type, Fill] = {
    Type.F32: fill_f32,
    Type.Q4_K: fill_q4_k,
    Type.Q5_0: fill_q5_0,
    Type.Q6_K: fill_q6_k,
    Type.Q8_0: fill_q8_0,
    Type.IQ1_S: fill_codebook(gguf.quants.IQ1_S, 1, 8),
    Type.IQ1_M: fill_codebook(gguf.quants.IQ1_M, 1, 8),
    Type.IQ2_XXS: fill_codebook(gguf.quants.IQ2_XXS, 1 / 8, 16),
    Type.IQ2_XS: fill_codebook(gguf.quants.IQ2_XS, 1 / 8, 16),
    Type.IQ2_S: fill_codebook(gguf.quants.IQ2_S, 1 / 8, 16),
    Type.IQ3_XXS: fill_codebook(gguf.quants.IQ3_XXS, 1 / 4, 16),
    Type.IQ3_S: fill_codebook(gguf.quants.IQ3_S, 1, 16),
}


def random_blocks(rng: np.random.Generator, type: Type, count: int, std: float) -> Iterator[np.ndarray]:
    """`count` weights as uint8 [blocks, block bytes], in chunks of at most 128 MiB."""
    values, width = GGML_QUANT_SIZES[type]
    blocks, step = count // values, CHUNK_BYTES // width
    for at in range(0, blocks, step):
        n = min(step, blocks - at)
        chunk = np.frombuffer(rng.bytes(n * width), np.uint8).reshape(n, width).copy()
        FILL[type](rng, chunk, std)
        yield chunk
