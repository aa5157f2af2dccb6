"""The pass over a few tokens, recorded once and replayed: one native call instead of the interpreter's way through all
layers, as a captured graph is on a GPU. What changes from pass to pass is written in place into the recorded arrays.
Whatever is not computed by an entry of the pool would stay as it was recorded.
"""

from collections.abc import Callable

import numpy as np

from cpu_kernels import Pool
from hetero.attention import Step

MOST_TOKENS = 8


class RecordedStep:
    """`forward(ids, step)`, absorbed attention throughout, for as many tokens as at the recording.

    The recording is the first pass; `logits` are its result, and after each call that of the call.
    """

    def __init__(
        self,
        pool: Pool,
        forward: Callable[[np.ndarray, Step], np.ndarray],
        ids: np.ndarray,
        step: Step,
        pages: int,
    ):
        """`pages`: the most that a sequence can have; tables of all later steps must fit."""
        tokens = len(ids)
        self.ids = ids.copy()
        self.step = Step(
            positions=step.positions.copy(),
            sequence=np.zeros(tokens, np.int32),
            block_table=np.zeros((tokens, pages), np.int32),
            slots=step.slots.copy(),
            cos=step.cos.copy(),
            sin=step.sin.copy(),
            runs=(),
            few=np.arange(tokens),
        )
        self.write(ids, step)
        with pool.record() as self.program:
            self.logits = forward(self.ids, self.step)

    def write(self, ids: np.ndarray, step: Step) -> None:
        mine = self.step
        self.ids[...] = ids
        mine.positions[...], mine.slots[...], mine.cos[...], mine.sin[...] = (
            step.positions,
            step.slots,
            step.cos,
            step.sin,
        )
        # Row t of the recorded table is the row of token t's sequence; tokens of one sequence name the first of theirs.
        mine.sequence[...] = (step.sequence[:, None] == step.sequence).argmax(axis=1)
        mine.block_table[:, : step.block_table.shape[1]] = step.block_table[step.sequence]

    def __call__(self, ids: np.ndarray, step: Step) -> np.ndarray:
        """float32 [T, vocab], overwritten by the next call."""
        self.write(ids, step)
        self.program.replay()
        return self.logits
