"""Values for kernels to work on: normally distributed ones, and the angles of rope."""

import numpy as np
import torch


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def angles(tokens: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """cos, sin [tokens, pairs]: positions far out, frequencies as in the model."""
    theta = np.outer(np.arange(tokens) * 1317 + 5, 10000.0 ** (-np.arange(pairs) / pairs))
    return np.cos(theta).astype(np.float32), np.sin(theta).astype(np.float32)


def normal_tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(normal(seed, *shape))


def angle_tensors(tokens: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = angles(tokens, pairs)
    return torch.from_numpy(cos), torch.from_numpy(sin)
