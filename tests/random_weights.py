"""Weight matrices with every bit pattern a file may hold, and what they stand for."""

import gguf
import numpy as np

from cpu_kernels import Matrix
from hetero import kernel_references
from hetero.kernel_references import FLOATS
from hetero.kernel_references import values_of as values_of

# Where a block's f16 scales stand; IQ1_M's only one is divided over the upper nibbles of four 16-bit words.
SCALES = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ1_S": (0,),
    "IQ1_M": (48, 50, 52, 54),
}  # fmt: skip


def _random_scales(shape: tuple[int, ...], rng: np.random.Generator, scale: float) -> np.ndarray:
    """The bits of f16 numbers, uint16."""
    return (rng.standard_normal(shape) * scale * (rng.random(shape) > 0.05)).astype(np.float16).view(np.uint16)


def random_weights(type: str, shape: tuple[int, ...], rng: np.random.Generator, scale: float = 0.02) -> np.ndarray:
    """uint8 [..., row bytes]: all bytes random except the scales, which have both signs and now and then are 0."""
    *outer, columns = shape
    if type in FLOATS:
        values = rng.standard_normal(shape, np.float32)
        if type == "BF16":
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        return values.astype(FLOATS[type]).view(np.uint8)
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]
    blocks = rng.integers(0, 256, (*outer, columns // block_values, block_bytes), np.uint8)
    if type == "IQ1_M":
        quarters = _random_scales(blocks.shape[:-1], rng, scale)[..., None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        blocks[..., 49::2] = blocks[..., 49::2] & 15 | quarters.astype(np.uint8) << 4
        return blocks.reshape(*outer, -1)
    for offset in SCALES[type]:
        scales = _random_scales(blocks.shape[:-1], rng, scale)
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*outer, -1)


def random_matrix(type: str, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Matrix, np.ndarray]:
    """A Matrix and its weights in float64."""
    data = random_weights(type, shape, rng)
    return Matrix(data, type, shape[-1]), values_of(data, type).astype(np.float64)


def as_multiplied(x: np.ndarray, matrix: Matrix) -> np.ndarray:
    """Activations as this matrix sees them, float64."""
    return kernel_references.as_multiplied(x, matrix.type)
