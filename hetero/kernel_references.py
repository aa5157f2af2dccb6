"""The kernels' slow twins in float64 numpy, with the same arguments: what every backend is compared with."""

from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np

FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def values_of(data: np.ndarray, type: str) -> np.ndarray:
    """The gguf package's dequantization of uint8 [..., row bytes], float32."""
    source = data.view(FLOATS[type]) if type in ("F32", "F16") else data
    return gguf.quants.dequantize(source, gguf.GGMLQuantizationType[type]).astype(np.float32)


def as_multiplied(x: np.ndarray, type: str) -> np.ndarray:
    """Activations as a matrix of this type sees them, float64: f32, or rounded to 8 bits in blocks of 32 values."""
    if type in FLOATS:
        return x.astype(np.float64)
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // 32, 32)
    peak = np.abs(blocks).max(axis=-1, keepdims=True, initial=0)
    factor = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    scale = peak / np.float32(127)
    return (np.rint(blocks * factor).astype(np.float64) * scale).reshape(x.shape)


def ffn(network: Sequence[np.ndarray], types: Sequence[str], x: np.ndarray) -> np.ndarray:
    """down(SiLU(gate x) * up x) for x[T, K]: gate, up and down in float64; of what types they were."""
    gate, up, down = network
    a, b = as_multiplied(x, types[0]) @ gate.T, as_multiplied(x, types[1]) @ up.T
    hidden = (a / (1 + np.exp(-a)) * b).astype(np.float32)
    return as_multiplied(hidden, types[2]) @ down.T


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * weight


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x[T, n, R] rotated pair by pair as complex numbers."""
    pairs = x[..., 0::2].astype(np.float64) + 1j * x[..., 1::2]
    turned = pairs * (cos.astype(np.float64) + 1j * sin)[:, None, :]
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def route(
    logits: np.ndarray,
    bias: np.ndarray | None,
    *,
    used: int,
    groups: int,
    groups_used: int,
    group_score: str,
    gating: str,
    normalize: bool,
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    logits = logits.astype(np.float64)
    if gating == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    choice = scores if bias is None else scores + bias
    best = -np.sort(-choice.reshape(len(logits), groups, -1), axis=2)
    group_scores = best[:, :, : 2 if group_score == "top2" else 1].sum(axis=2)
    kept = np.argsort(-group_scores, axis=1, kind="stable")[:, :groups_used]
    group_of = np.arange(logits.shape[1]) // (logits.shape[1] // groups)
    masked = np.where((group_of[None, :, None] == kept[:, None, :]).any(axis=2), choice, -np.inf)
    ids = np.argsort(-masked, axis=1, kind="stable")[:, :used]
    weights = np.take_along_axis(scores, ids, axis=1)
    if normalize:
        weights = weights / (weights.sum(axis=1, keepdims=True) + 1e-20)
    return ids, weights * scale


def cache_values(layer: np.ndarray) -> np.ndarray:
    """A cache layer as float64 [slots, C + R]."""
    rows = layer.reshape(-1, layer.shape[2])
    if layer.dtype == np.uint8:
        rows = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q8_0)
    return rows.astype(np.float64)


def keys_of(layer: np.ndarray, pages: np.ndarray, position: Any) -> np.ndarray:
    """What a token at `position` attends: float64 [position + 1, C + R]."""
    return cache_values(layer).reshape(len(layer), 64, -1)[pages].reshape(len(pages) * 64, -1)[: position + 1]


def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """q[H, D], keys[H, L, D], values[H, L, V] -> [H, V]"""
    scores = (keys @ q[:, :, None].astype(np.float64))[:, :, 0] * scale
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return ((scores / scores.sum(axis=1, keepdims=True))[:, None, :] @ values)[:, 0]


def mla_absorbed(
    q: np.ndarray,
    layer: np.ndarray,
    block_table: np.ndarray,
    sequence: np.ndarray,
    positions: np.ndarray,
    scale: float,
    latent: int,
) -> np.ndarray:
    """`q` [T, H, C + R] in one part."""
    out = np.empty((*q.shape[:2], latent))
    for t in range(len(q)):
        cached = keys_of(layer, block_table[sequence[t]], positions[t])
        keys = np.broadcast_to(cached, (q.shape[1], *cached.shape))
        out[t] = attend(q[t], keys, keys[:, :, :latent], scale)
    return out


def mla_expanded(
    q: np.ndarray,
    k_up: np.ndarray,
    v_up: np.ndarray,
    layer: np.ndarray,
    block_row: np.ndarray,
    positions: np.ndarray,
    scale: float,
) -> np.ndarray:
    latent = k_up.shape[2]
    cached = keys_of(layer, block_row, max(positions))
    nope = cached[:, :latent] @ k_up.astype(np.float64).swapaxes(1, 2)  # [H, L, N]
    rope = np.broadcast_to(cached[:, latent:], (*nope.shape[:2], cached.shape[1] - latent))
    keys = np.concatenate([nope, rope], axis=2)
    values = cached[:, :latent] @ v_up.astype(np.float64).swapaxes(1, 2)  # [H, L, V]
    seen = [position + 1 for position in positions]
    return np.stack([attend(q[t], keys[:, :n], values[:, :n], scale) for t, n in enumerate(seen)])
