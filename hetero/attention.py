"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

T tokens, H heads, C = kv_lora latent, R rope, N nope and V value dimensions of a head, Q = q_lora.

The cache holds C + R values per token and layer. Two ways to use them give the same result:
  absorbed   W_uk acts on the query and W_uv on the output; attention runs on the latent itself. Best for few tokens.
  expanded   keys and values of every head are recomputed from the latent; a pair then costs less. Best for many.
docs/mla.md shows the arithmetic.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hetero.config import ModelConfig
from hetero.linear import Linear
from hetero.rope import softmax_scale
from hetero.side import Array, Side


class Run(NamedTuple):
    """Tokens of one sequence for expanded attention."""

    sequence: int
    tokens: np.ndarray  # int64 [t], their indices
    pages: int  # that hold them and what they attend to


@dataclass(frozen=True)
class Step:
    """What every layer's attention needs to know of one batch; arrays of the side that computes it."""

    positions: Array  # int32 [T]
    sequence: Array  # int32 [T], row of the block table
    block_table: Array  # int32 [S, P], pages of each sequence
    slots: Array  # int64 [T], page * 64 + offset: where this batch's tokens are cached
    cos: Array  # float32 [T, R/2]
    sin: Array
    runs: tuple[Run, ...]
    few: np.ndarray  # int64 [t]: token indices for absorbed attention; numpy's on every side, as those of runs


@dataclass(frozen=True)
class KvUp:
    """W_uk, W_uv of all heads: split (attn_k_b transposed [H, C, N], attn_v_b [H, V, C]) or rows of one attn_kv_b."""

    k_b: Any  # Matrix of its side, as is v_b
    v_b: Any
    k_transposed: bool


@dataclass(frozen=True)
class QueryUp:
    """From the query latent to the heads: attn_q_b · norm(latent)."""

    attn_q_a_norm: Array
    attn_q_b: Linear


@dataclass(frozen=True)
class MLAWeights:
    """One layer's tensors. `attn_a` is attn_q_a | attn_kv_a_mqa as one product (attn_q | ... without q_lora)."""

    attn_a: Linear
    query_up: QueryUp | None  # None without q_lora
    attn_kv_a_norm: Array
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
    def __init__(self, config: ModelConfig, weights: MLAWeights, side: Side):
        self.weights, self.side, self.eps = weights, side, config.rms_eps
        self.heads, self.nope, self.latent = config.heads, config.nope_dim, config.kv_lora_rank
        self.q_rows = config.q_lora_rank or config.heads * (config.nope_dim + config.rope.dimension)
        self.scale = softmax_scale(config)
        self.absorb = side.linear_heads if weights.attn_kv_b.k_transposed else side.linear_heads_transposed

    def project(self, x: Array, step: Step, layer: Any) -> Array:
        """Writes this batch's latents into the cache `layer`; returns the rotated queries [T, H, N + R]."""
        w, side = self.weights, self.side
        both = w.attn_a(x)  # [T, Q + C + R]
        q = both[:, : self.q_rows]
        if w.query_up is not None:
            q = w.query_up.attn_q_b(side.rms_norm(q, w.query_up.attn_q_a_norm, self.eps))
        q = q.reshape(len(x), self.heads, -1)  # a view: rows may be strided
        side.rope(q[:, :, self.nope :], step.cos, step.sin)
        side.write_latent(both, self.q_rows, w.attn_kv_a_norm, self.eps, step, layer)
        return q

    def __call__(self, x: Array, step: Step, layer: Any) -> Array:
        """x [T, hidden] normalised -> [T, hidden]. Reads back what the cache holds, for the current tokens too."""
        q = self.project(x, step, layer)
        if not step.runs:
            values = self.attend_absorbed(q, step, layer, step.sequence, step.positions)
        else:
            values = self.attend_mixed(q, step, layer)
        return self.weights.attn_output(values.reshape(len(x), -1))

    def attend_absorbed(self, q: Array, step: Step, layer: Any, sequence: Array, positions: Array) -> Array:
        """[T, H, N + R] -> [T, H, V]"""
        side, up = self.side, self.weights.attn_kv_b
        absorbed, rotated = self.absorb(up.k_b, q[:, :, : self.nope]), q[:, :, self.nope :]  # [T, H, C], [T, H, R]
        latent = side.mla_absorbed(absorbed, rotated, layer, step.block_table, sequence, positions, self.scale)
        return side.linear_heads(up.v_b, latent)

    def attend_mixed(self, q: Array, step: Step, layer: Any) -> Array:
        """Long runs of one sequence expanded, the remaining tokens absorbed."""
        side, up = self.side, self.weights.attn_kv_b
        expanded = side.expand(up.k_b, up.v_b)
        if len(step.runs) == 1 and not len(step.few):
            return self.attend_expanded(q, expanded, step, layer, step.runs[0], step.positions)
        return side.assembled(self.attended_parts(q, expanded, step, layer), len(q))

    def attended_parts(self, q: Array, expanded: Any, step: Step, layer: Any) -> Iterator[tuple[np.ndarray, Array]]:
        """Token indices [t] and their values [t, H, V]"""
        rows, few = self.side.rows, step.few
        for run in step.runs:
            own, positions = rows(q, run.tokens), rows(step.positions, run.tokens)
            yield run.tokens, self.attend_expanded(own, expanded, step, layer, run, positions)
        if len(few):
            sequences, positions = rows(step.sequence, few), rows(step.positions, few)
            yield few, self.attend_absorbed(rows(q, few), step, layer, sequences, positions)

    def attend_expanded(self, q: Array, expanded: Any, step: Step, layer: Any, run: Run, positions: Array) -> Array:
        row, transposed = step.block_table[run.sequence, : run.pages], self.weights.attn_kv_b.k_transposed
        return self.side.mla_expanded(q, expanded, layer, row, positions, self.scale, transposed)
