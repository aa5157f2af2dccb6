"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

T tokens, H heads, C = kv_lora latent, R rope, N nope and V value dimensions of a head, Q = q_lora.

The cache holds C + R values per token and layer. Two ways to use them give the same result:
  absorbed   W_uk acts on the query and W_uv on the output; attention runs on the latent itself. Best for few tokens.
  expanded   keys and values of every head are recomputed from the latent; a pair then costs less. Best for many.
docs/mla.md shows the arithmetic.
"""

from dataclasses import dataclass

import numpy as np

from cpu_kernels import (
    Matrix,
    Pool,
    dequantize,
    linear_heads,
    linear_heads_transposed,
    mla_absorbed,
    mla_expanded,
    rms_norm,
    rope,
    write_cache,
)
from hetero.config import ModelConfig
from hetero.linear import Linear
from hetero.rope import softmax_scale


@dataclass(frozen=True)
class Step:
    """What every layer's attention needs to know of one batch."""

    positions: np.ndarray  # int32 [T]
    sequence: np.ndarray  # int32 [T], row of the block table
    block_table: np.ndarray  # int32 [S, P], pages of each sequence
    slots: np.ndarray  # int64 [T], page * 64 + offset: where this batch's tokens are cached
    cos: np.ndarray  # float32 [T, R/2]
    sin: np.ndarray
    runs: tuple[tuple[int, np.ndarray], ...]  # (sequence, its token indices) for expanded attention
    few: np.ndarray  # int64 [t]: token indices for absorbed attention


@dataclass(frozen=True)
class KvUp:
    """W_uk, W_uv of all heads: split (attn_k_b transposed [H, C, N], attn_v_b [H, V, C]) or rows of one attn_kv_b."""

    k_b: Matrix
    v_b: Matrix
    k_transposed: bool

    def absorb(self, pool: Pool, q_nope: np.ndarray) -> np.ndarray:
        """[T, H, N] -> [T, H, C]"""
        return (linear_heads if self.k_transposed else linear_heads_transposed)(pool, self.k_b, q_nope)

    def values(self, pool: Pool, latent: np.ndarray) -> np.ndarray:
        """[T, H, C] -> [T, H, V]"""
        return linear_heads(pool, self.v_b, latent)

    def expand(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """float32 W_uk [H, N, C], or [H, C, N] if transposed, and W_uv [H, V, C] of this one layer."""
        return dequantize(pool, self.k_b), dequantize(pool, self.v_b)


@dataclass(frozen=True)
class QueryUp:
    """From the query latent to the heads: attn_q_b · norm(latent)."""

    attn_q_a_norm: np.ndarray
    attn_q_b: Linear


@dataclass(frozen=True)
class MLAWeights:
    """One layer's tensors. `attn_a` is attn_q_a | attn_kv_a_mqa as one product (attn_q | ... without q_lora)."""

    attn_a: Linear
    query_up: QueryUp | None  # None without q_lora
    attn_kv_a_norm: np.ndarray
    attn_kv_b: KvUp
    attn_output: Linear


# Expanded attention multiplies that much faster: 92 to 98 against 70 to 78 GFLOP/s (lite's 16 heads, f16, one core of a
# Zen 4, depths 512 to 8192). Measured, both took the same time at 128 tokens, where this rule says 126.
EXPANDED_SPEED = 1.25


def absorbed_limit(config: ModelConfig) -> int:
    """Up to this many tokens of a sequence absorbed attention is faster, whatever the depth.

    Multiplications per cached token and head: absorbed T·(2C + R), expanded C·(N + V) + T·(N + R + V).
    """
    up, rope = config.nope_dim + config.value_dim, config.rope.dimension
    absorbed, expanded = EXPANDED_SPEED * (2 * config.kv_lora_rank + rope), up + rope
    return int(config.kv_lora_rank * up / max(absorbed - expanded, 1))


class MLA:
    def __init__(self, config: ModelConfig, weights: MLAWeights, pool: Pool):
        self.weights, self.pool, self.eps = weights, pool, config.rms_eps
        self.heads, self.nope, self.latent = config.heads, config.nope_dim, config.kv_lora_rank
        self.q_rows = config.q_lora_rank or config.heads * (config.nope_dim + config.rope.dimension)
        self.scale = softmax_scale(config)

    def project(self, x: np.ndarray, step: Step, layer: np.ndarray) -> np.ndarray:
        """Writes this batch's latents into the cache `layer`; returns the rotated queries [T, H, N + R]."""
        w, pool = self.weights, self.pool
        both = w.attn_a(x)  # [T, Q + C + R]
        q, kv = both[:, : self.q_rows], both[:, self.q_rows :]
        if w.query_up is not None:
            q = w.query_up.attn_q_b(rms_norm(pool, q, w.query_up.attn_q_a_norm, self.eps))
        q = q.reshape(len(x), self.heads, -1)  # a view: rows may be strided
        key = kv[:, self.latent :]  # [T, R], shared by all heads
        rope(pool, q[:, :, self.nope :], step.cos, step.sin)
        rope(pool, key, step.cos, step.sin)
        write_cache(pool, layer, rms_norm(pool, kv[:, : self.latent], w.attn_kv_a_norm, self.eps), key, step.slots)
        return q

    def __call__(self, x: np.ndarray, step: Step, layer: np.ndarray) -> np.ndarray:
        """x [T, hidden] normalised -> [T, hidden]. Reads back what the cache holds, for the current tokens too."""
        q = self.project(x, step, layer)
        if not step.runs:
            values = self.attend_absorbed(q, step, layer, step.sequence, step.positions)
        else:
            values = self.attend_mixed(q, step, layer)
        return self.weights.attn_output(values.reshape(len(x), -1))

    def attend_absorbed(self, q, step: Step, layer, sequence, positions) -> np.ndarray:
        """[T, H, N + R] -> [T, H, V]"""
        absorbed, rotated = self.weights.attn_kv_b.absorb(self.pool, q[:, :, : self.nope]), q[:, :, self.nope :]
        latent = mla_absorbed(self.pool, absorbed, rotated, layer, step.block_table, sequence, positions, self.scale)
        return self.weights.attn_kv_b.values(self.pool, latent)

    def attend_mixed(self, q, step: Step, layer) -> np.ndarray:
        """Long runs of one sequence expanded, the remaining tokens absorbed."""
        k_up, v_up = self.weights.attn_kv_b.expand(self.pool)
        if len(step.runs) == 1 and not len(step.few):
            return self.attend_expanded(q, k_up, v_up, step, layer, step.runs[0][0], step.positions)
        values = np.empty((len(q), self.heads, v_up.shape[1]), np.float32)
        for sequence, at in step.runs:
            values[at] = self.attend_expanded(q[at], k_up, v_up, step, layer, sequence, step.positions[at])
        if len(step.few):
            few = step.few
            values[few] = self.attend_absorbed(q[few], step, layer, step.sequence[few], step.positions[few])
        return values

    def attend_expanded(self, q, k_up, v_up, step: Step, layer, sequence: int, positions) -> np.ndarray:
        row, transposed = step.block_table[sequence], self.weights.attn_kv_b.k_transposed
        return mla_expanded(self.pool, q, k_up, v_up, layer, row, positions, self.scale, transposed)
