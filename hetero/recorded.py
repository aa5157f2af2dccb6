"""The pass over a few tokens, recorded once and replayed: one native call instead of the interpreter's way through all
layers, as a captured graph is on a GPU. What changes from pass to pass is written in place into the recorded arrays.
Whatever is not computed by an entry of the pool would stay as it was recorded.
"""

from collections.abc import Callable

import numpy as np

from cpu_kernels import Pool
from hetero.attention import Step

MOST_TOKENS = 8


Empty = Callable[[tuple[int, ...], type], np.ndarray]  # of a shape and a dtype, zeroed


def fixed_step(step: Step, pages: int, empty: Empty = np.zeros) -> Step:
    """Arrays for steps of as many tokens, absorbed attention throughout. `pages`: the most that a sequence has."""
    tokens = len(step.positions)
    return Step(
        positions=empty((tokens,), np.int32),
        sequence=empty((tokens,), np.int32),
        block_table=empty((tokens, pages), np.int32),
        slots=empty((tokens,), np.int64),
        cos=empty(step.cos.shape, np.float32),
        sin=empty(step.sin.shape, np.float32),
        runs=(),
        few=np.arange(tokens),
    )


def write_step(mine: Step, step: Step) -> None:
    """`step` into arrays that `fixed_step` made."""
    mine.positions[...], mine.slots[...], mine.cos[...], mine.sin[...] = (
        step.positions,
        step.slots,
        step.cos,
        step.sin,
    )
    # Row t of the fixed table is the row of token t's sequence; tokens of one sequence name the first of theirs.
    mine.sequence[...] = (step.sequence[:, None] == step.sequence).argmax(axis=1)
    mine.block_table[:, : step.block_table.shape[1]] = step.block_table[step.sequence]


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
        self.ids, self.step = ids.copy(), fixed_step(step, pages)
        write_step(self.step, step)
        with pool.record() as self.program:
            self.logits = forward(self.ids, self.step)

    def __call__(self, ids: np.ndarray, step: Step) -> np.ndarray:
        """float32 [T, vocab], overwritten by the next call."""
        self.ids[...] = ids
        write_step(self.step, step)
        self.program.replay()
        return self.logits
