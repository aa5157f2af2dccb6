"""How far logits lie from a reference. Rows are tokens."""

import numpy as np

EXACT = 1e-4  # two f32 implementations that compute the same thing stay below; a wiring fault shows at 0.1 and more


def worst(got: np.ndarray, reference: np.ndarray) -> float:
    """Largest deviation as a share of the largest value; anything not finite counts as infinitely far."""
    deviation = np.abs(got - reference).max() / np.abs(reference).max()
    return float(deviation) if np.isfinite(deviation) else float("inf")


def agrees(got: np.ndarray, reference: np.ndarray) -> bool:
    return got.shape == reference.shape and worst(got, reference) <= EXACT


def median_token_error(got: np.ndarray, reference: np.ndarray) -> float:
    """Relative rms error of each token, then the median: a near-tied expert that flips spoils one token only."""
    error, size = np.square(got - reference).mean(-1), np.square(reference).mean(-1)
    return float(np.median(np.sqrt(error / size)))
