"""Rotary embedding: YaRN's frequencies (arXiv 2309.00071, section 3.4) and DeepSeek's softmax scale."""

import math

import numpy as np

from hetero.config import ModelConfig, RopeConfig


def inverse_frequencies(rope: RopeConfig) -> np.ndarray:
    """float64 [R/2], radians per position. YaRN keeps fast pairs, divides slow ones by `factor`, blends between."""
    pair = np.arange(rope.dimension // 2)
    plain = rope.base ** (-2.0 * pair / rope.dimension)
    if rope.factor == 1.0:
        return plain

    def pair_turning(turns: float) -> float:
        """The (fractional) pair that makes `turns` turns over the original context."""
        return rope.dimension * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low = max(math.floor(pair_turning(rope.beta_fast)), 0)
    high = min(math.ceil(pair_turning(rope.beta_slow)), rope.dimension - 1)
    interpolated = np.clip((pair - low) / max(high - low, 0.001), 0.0, 1.0)
    return plain * (1.0 - interpolated) + plain / rope.factor * interpolated


def softmax_scale(config: ModelConfig) -> float:
    """1 / sqrt(nope + rope), times mscale² where YaRN stretches the context (DeepSeek-V2, modeling_deepseek.py)."""
    mscale = 1.0 + config.rope.log_multiplier * math.log(config.rope.factor) if config.rope.factor > 1.0 else 1.0
    return mscale * mscale / math.sqrt(config.nope_dim + config.rope.dimension)


def rotations(frequencies: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), each float32 [T, R/2]. Angles are float64: at position 160,000 float32 is off by 0.01 radians."""
    angle = positions[:, None].astype(np.float64) * frequencies
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
