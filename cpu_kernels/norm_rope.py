"""Root-mean-square norm and rotary embedding. T tokens, K columns, n heads, R = 64 rotated dimensions."""

import numpy as np

from .jit import fast_kernel, kernel
from .simd import fma, load_f32, load_f32x4, load_f32x8, store
from .vector import F32x4, F32x8, constant, shuffle

_swap_pairs = shuffle(F32x8, [1, 0, 3, 2, 5, 4, 7, 6])
_double = shuffle(F32x4, [0, 0, 1, 1, 2, 2, 3, 3])
_SIGNS = constant(F32x8, [-1.0, 1.0] * 4)


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
def _rotate(row, cos, sin, pairs):
    for i in range(0, pairs // 4 * 4, 4):
        x = load_f32x8(row + 8 * i)
        turned = _swap_pairs(x) * (_double(load_f32x4(sin + 4 * i)) * _SIGNS())
        store(row + 8 * i, fma(x, _double(load_f32x4(cos + 4 * i)), turned))
    for i in range(pairs // 4 * 4, pairs):
        even, odd = load_f32(row + 8 * i), load_f32(row + 8 * i + 4)
        c, s = load_f32(cos + 4 * i), load_f32(sin + 4 * i)
        store(row + 8 * i, even * c - odd * s)
        store(row + 8 * i + 4, odd * c + even * s)


@kernel
def _rope(x, cos, sin):
    tokens, heads, dimensions = x.shape
    for t in range(tokens):
        for h in range(heads):
            row = x.ctypes.data + t * x.strides[0] + h * x.strides[1]
            _rotate(row, cos.ctypes.data + t * cos.strides[0], sin.ctypes.data + t * sin.strides[0], dimensions // 2)


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> None:
    """Rotate the pairs (2i, 2i + 1) of x[T, n, R] or x[T, R], R contiguous, in place by angles as cos, sin [T, R/2].

    DeepSeek's pairs are interleaved, in GGUF files too: no permutation of q and k as for llama.
    """
    if x.ndim == 2:
        x = x[:, None, :]
    if x.ndim != 3 or x.shape[2] % 2 or cos.shape != (x.shape[0], x.shape[2] // 2) or sin.shape != cos.shape:
        raise ValueError(f"rope: x {x.shape}, cos {cos.shape}, sin {sin.shape}; [T, n, R] and twice [T, R/2] expected")
    if not x.dtype == cos.dtype == sin.dtype == np.float32:
        raise ValueError(f"rope: float32 expected, got {x.dtype}, {cos.dtype}, {sin.dtype}")
    if x.size and not x.strides[2] == cos.strides[1] == sin.strides[1] == 4:
        raise ValueError("rope: the values of a row of x, cos and sin must lie side by side")
    _rope(x, cos, sin)
