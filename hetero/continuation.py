"""How one sequence goes on: from the logits after its last token to the next one, until there is a reason to end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from hetero.sampler import Sampler, Sampling, largest

Reason = Literal["stop", "length"]


class Constraint(Protocol):
    """What the text may be: a grammar that allows tokens one after the other."""

    def mask(self) -> np.ndarray | None:
        """uint32 [ceil(vocab / 32)], a bit for each token that may come next, lowest first; None: all may."""

    def accept(self, id: int) -> None:
        """This token came. Not called for stop ids."""

    @property
    def ended(self) -> bool:
        """Nothing more may come."""


@dataclass(frozen=True)
class Generated:
    """`logprob` and `top`, the most probable tokens with theirs, most probable first: where they were asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Continuation:
    """`limit`: tokens, at most. `logprobs`: how many of the most probable tokens are told; None: no logprobs at all.

    `reason` is None as long as there is a next token. RequestError: a bias that names no token.
    """

    def __init__(
        self,
        ids: Sequence[int] | np.ndarray,
        sampling: Sampling,
        vocab_size: int,
        limit: int,
        stop_ids: frozenset[int],
        constraint: Constraint | None = None,
        logprobs: int | None = None,
    ):
        self.sampler, self.stop_ids, self.constraint = Sampler(sampling, vocab_size), stop_ids, constraint
        self.sampler.accept_all(ids)
        self.left, self.logprobs = limit, logprobs
        self.reason: Reason | None = None if limit > 0 else "length"

    def choose(self, logits: np.ndarray) -> Generated | None:
        """From float32 [vocab]; None where the sequence ends before another token."""
        if self.constraint is not None and self.constraint.ended:
            self.reason = "stop"
            return None
        mask = None if self.constraint is None else self.constraint.mask()
        id = self.sampler.sample(logits, None if mask is None else allowed(mask, len(logits)))
        if id in self.stop_ids:
            self.reason = "stop"
            return None
        self.sampler.accept(id)
        if self.constraint is not None:
            self.constraint.accept(id)
            self.reason = "stop" if self.constraint.ended else None
        self.left -= 1
        if not self.left and self.reason is None:
            self.reason = "length"
        return Generated(id) if self.logprobs is None else with_logprobs(id, logits, self.logprobs)


def allowed(mask: np.ndarray, vocab_size: int) -> np.ndarray:
    """bool [vocab] of a bit mask, uint32."""
    words: Any = np.ascontiguousarray(mask, np.dtype("<u4"))
    return np.unpackbits(words.view(np.uint8), count=vocab_size, bitorder="little").view(np.bool_)


def bits(ids: Iterable[int], vocab_size: int, others: bool = False) -> np.ndarray:
    """A mask that allows `ids`, or with `others` all but these; as `Constraint.mask` has it."""
    bits = np.full(-(-vocab_size // 32) * 32, others, np.uint8)
    bits[list(ids)] = not others
    bits[vocab_size:] = 0
    return np.packbits(bits, bitorder="little").view(np.dtype("<u4"))


def with_logprobs(id: int, logits: np.ndarray, top: int) -> Generated:
    """Of the model's own distribution, whatever bias, penalties and temperature made of it."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    ids = largest(logits, min(top, len(logits))) if top else np.empty(0, np.int64)
    ids = ids[np.argsort(-values[ids], kind="stable")]
    return Generated(id, float(values[id]), tuple(zip(ids.tolist(), values[ids].tolist(), strict=True)))
