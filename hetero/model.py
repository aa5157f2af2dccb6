"""The forward pass: embedding, blocks, head. Prefill and decode call the same `Model.forward`."""

from dataclasses import dataclass, replace

import numpy as np

from cpu_kernels import Matrix, embed, rms_norm
from hetero.attention import MLA, Step, absorbed_limit
from hetero.cache import PAGE
from hetero.config import ModelConfig
from hetero.linear import Linear
from hetero.moe import DenseFFN, MoE
from hetero.rope import inverse_frequencies, rotations


@dataclass(frozen=True)
class Batch:
    """T tokens of S sequences, in any order; a sequence's own tokens ascend."""

    ids: np.ndarray  # int64 [T]
    positions: np.ndarray  # int32 [T]
    sequence: np.ndarray  # int32 [T], row of block_table
    block_table: np.ndarray  # int32 [S, P]
    lengths: np.ndarray  # int32 [S], cached tokens including this batch's
    logits_at: np.ndarray  # int64 [n], indices into T


@dataclass(frozen=True)
class Block:
    attn_norm: np.ndarray
    attention: MLA
    ffn_norm: np.ndarray
    feed_forward: DenseFFN | MoE


class Model:
    def __init__(
        self, config: ModelConfig, token_embd: Matrix, blocks: list[Block], output_norm: np.ndarray, output: Linear
    ):
        self.config, self.token_embd, self.blocks, self.output_norm, self.output = (
            config,
            token_embd,
            blocks,
            output_norm,
            output,
        )
        self.pool = output.pool
        self.frequencies = inverse_frequencies(config.rope)
        self.absorbed_limit = absorbed_limit(config)

    def forward(self, batch: Batch, layers: list[np.ndarray], step: Step | None = None) -> np.ndarray | None:
        """Logits float32 [n, vocab] of the tokens in `logits_at`, None without any. `layers`: the cache's arrays.

        `step` is what `self.step` makes of the batch, for a caller who keeps it.
        """
        step = step or self.step(batch)
        pool, eps, last = self.pool, self.config.rms_eps, len(self.blocks) - 1
        x = embed(pool, self.token_embd, batch.ids)  # [T, hidden]
        rest = None  # of the block before, not yet added to x
        for i, (block, layer) in enumerate(zip(self.blocks, layers, strict=True)):
            h = rms_norm(pool, x, block.attn_norm, eps, add=rest)
            if i == last and not len(batch.logits_at):
                block.attention.project(h, step, layer)  # only the cache is wanted: the rest of the last layer is not
                return None
            attended = block.attention(h, step, layer)
            if i == last and not np.array_equal(batch.logits_at, np.arange(len(x))):
                x, attended = x[batch.logits_at], attended[batch.logits_at]  # [n, hidden]
            rest = block.feed_forward(rms_norm(pool, x, block.ffn_norm, eps, add=attended))
        return self.output(rms_norm(pool, x, self.output_norm, eps, add=rest))

    def rehearse(self, layers: list[np.ndarray]) -> None:
        """A few tokens through every kernel the model uses, so that none is compiled in the middle of an answer.

        One, then two: a part of a single row is contiguous, a part of several is not, and kernels are compiled for
        either. Writes the first slots of the cache, which must be empty.
        """
        for tokens in (1, 2):
            at, zeros = np.arange(tokens), np.zeros(tokens, np.int32)
            positions, table = at.astype(np.int32), np.zeros((1, 1), np.int32)
            batch = Batch(at * 0, positions, zeros, table, lengths=np.array([tokens], np.int32), logits_at=at)
            self.forward(batch, layers)
            expanded = replace(self.step(batch), runs=((0, at),), few=at[:0])
            self.blocks[0].attention(np.zeros((tokens, self.config.hidden_size), np.float32), expanded, layers[0])

    def step(self, batch: Batch) -> Step:
        pages = batch.block_table[batch.sequence, batch.positions // PAGE]
        cos, sin = rotations(self.frequencies, batch.positions)
        counts = np.bincount(batch.sequence, minlength=len(batch.block_table))
        many = np.flatnonzero(counts > self.absorbed_limit)
        return Step(
            positions=batch.positions,
            sequence=batch.sequence,
            block_table=batch.block_table,
            slots=pages.astype(np.int64) * PAGE + batch.positions % PAGE,
            cos=cos,
            sin=sin,
            runs=tuple((int(s), np.flatnonzero(batch.sequence == s)) for s in many),
            few=np.flatnonzero(~np.isin(batch.sequence, many)),
        )
