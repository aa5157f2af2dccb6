"""Root-mean-square norm and rotary embedding. T tokens, K columns, n heads, R = 64 rotated dimensions."""

import numpy as np

from .jit import fast_kernel, kernel


@fast_kernel
def _rms_norm(x, weight, eps, out):
    tokens, columns = x.shape
    for t in range(tokens):
        squares = 0.0  # float64: a sum over 7168 columns loses nothing
        for k in range(columns):
            squares += np.float64(x[t, k]) * np.float64(x[t, k])
        scale = np.float32(1.0 / np.sqrt(squares / columns + eps))
        for k in range(columns):
            out[t, k] = x[t, k] * scale * weight[k]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, out: np.ndarray | None = None) -> np.ndarray:
    """x[T, K] (rows may be strided) / rms(row) * weight[K]; `out` may be x itself."""
    if x.ndim != 2 or weight.shape != x.shape[1:]:
        raise ValueError(f"rms_norm: x {x.shape} and weight {weight.shape} do not fit [T, K] and [K]")
    if out is None:
        out = np.empty(x.shape, np.float32)
    elif out.shape != x.shape:
        raise ValueError(f"rms_norm: out has shape {out.shape}, x {x.shape}")
    if not x.dtype == weight.dtype == out.dtype == np.float32:
        raise ValueError(f"rms_norm: float32 expected, got {x.dtype}, {weight.dtype}, {out.dtype}")
    _rms_norm(x, weight, eps, out)
    return out


@kernel
def _rope(x, cos, sin):
    tokens, heads, dimensions = x.shape
    for t in range(tokens):
        for h in range(heads):
            for i in range(dimensions // 2):
                even, odd = x[t, h, 2 * i], x[t, h, 2 * i + 1]
                x[t, h, 2 * i] = even * cos[t, i] - odd * sin[t, i]
                x[t, h, 2 * i + 1] = odd * cos[t, i] + even * sin[t, i]


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> None:
    """Rotate the pairs (2i, 2i + 1) of x[T, n, R] or x[T, R], any strides, in place, by angles as cos, sin [T, R/2].

    DeepSeek's pairs are interleaved, in GGUF files too: no permutation of q and k as for llama.
    """
    if x.ndim == 2:
        x = x[:, None, :]
    if x.ndim != 3 or x.shape[2] % 2 or cos.shape != (x.shape[0], x.shape[2] // 2) or sin.shape != cos.shape:
        raise ValueError(f"rope: x {x.shape}, cos {cos.shape}, sin {sin.shape}; [T, n, R] and twice [T, R/2] expected")
    if not x.dtype == cos.dtype == sin.dtype == np.float32:
        raise ValueError(f"rope: float32 expected, got {x.dtype}, {cos.dtype}, {sin.dtype}")
    _rope(x, cos, sin)
