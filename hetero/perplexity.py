"""Perplexity of a text, and how far two runs of it are apart.

The text is cut into windows, each evaluated from an empty context, its first token replaced by begin-of-sequence where
the model wants one. Without a stride the windows stand end to end and the second half of each is scored, as llama.cpp's
perplexity tool does it, so the figures can be compared with published ones. With a stride S they overlap, and each
scores its last S tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np

from hetero.errors import KernelError, RequestError

ROWS = 64  # positions turned into float64 at a time: 64 x 129,280 are 66 MB


class Scorer(Protocol):
    """What is measured: an Engine, or llama.cpp."""

    def logits(self, ids: Sequence[int]) -> np.ndarray: ...


class Window(NamedTuple):
    ids: list[int]  # ids[0] may be begin-of-sequence
    first: int  # ids[first:] are predicted and scored, each from all before it


@dataclass
class Scores:
    """Per scored token, natural logarithms, float64."""

    losses: list[np.ndarray] = field(default_factory=list)  # -log p(the token that follows)

    @property
    def mean(self) -> float:
        return float(np.concatenate(self.losses).mean())

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean)

    @property
    def perplexity_error(self) -> float | None:
        """One standard error, from the spread of the losses; None for a single one."""
        losses = np.concatenate(self.losses)
        return self.perplexity * float(losses.std(ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else None


@dataclass
class Divergence:
    """KL(reference || measured) per scored token, and whether both would pick the same token."""

    kl: list[np.ndarray] = field(default_factory=list)
    same_top: list[np.ndarray] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        kl, same = np.concatenate(self.kl), np.concatenate(self.same_top)
        return {
            "kl_mean": float(kl.mean()),
            "kl_median": float(np.median(kl)),
            "kl_99": float(np.quantile(kl, 0.99)),
            "kl_max": float(kl.max()),
            "top1_agreement": float(same.mean()),
        }


def windows(ids: Sequence[int], window: int, stride: int | None, bos: int | None) -> list[Window]:
    """A text shorter than one window is one window; what is left over after the last whole window is not scored."""
    if len(ids) < 4:
        raise RequestError(f"the text has {len(ids)} tokens", "at least 4 are needed", "give a longer text")
    window = min(window, len(ids))
    check_window(window, stride)
    first = window // 2 + 1 if stride is None else window - stride
    cuts = []
    for start in range(0, len(ids) - window + 1, stride or window):
        part = list(ids[start : start + window])
        if bos is not None:
            part[0] = bos
        cuts.append(Window(part, first))
    return cuts


def check_window(window: int, stride: int | None) -> None:
    if window < 4:
        raise RequestError(f"a window of {window} tokens", "at least 4 are needed", "raise --window")
    if stride is not None and not 1 <= stride < window:
        limit = f"a window of {window} tokens takes 1 to {window - 1}"
        raise RequestError(f"a stride of {stride} tokens", limit, "change --stride")


def evaluate(
    cuts: Sequence[Window],
    scorer: Scorer,
    reference: Scorer | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Mean loss and perplexity over all windows; with a reference, its own and the divergence from it.

    `seconds` are those of the model measured, without its reference.
    """
    seconds = 0.0
    scores, reference_scores, divergence = Scores(), Scores(), Divergence()
    for at, cut in enumerate(cuts, start=1):
        started = perf_counter()
        logits = _scored(scorer, cut)
        seconds += perf_counter() - started
        scores.losses.append(_losses(logits, cut))
        if reference is not None:
            other = _scored(reference, cut)
            if other.shape != logits.shape:
                raise RequestError(
                    f"the reference has a vocabulary of {other.shape[1]:,} tokens",
                    f"this model has {logits.shape[1]:,}",
                    "compare models with the same tokenizer",
                )
            reference_scores.losses.append(_losses(other, cut))
            _compare(divergence, logits, other)
        if progress is not None:
            progress(at, len(cuts), f"perplexity {scores.perplexity:.4f}")
    result = _summary(scores) | {"seconds": seconds}
    if reference is not None:
        result["reference"] = _summary(reference_scores) | divergence.summary()
    return result


def _scored(scorer: Scorer, cut: Window) -> np.ndarray:
    """float32 [n, vocab]: logits of the scored positions; row i predicts cut.ids[cut.first + i]."""
    return scorer.logits(cut.ids)[cut.first - 1 : -1]


def _losses(logits: np.ndarray, cut: Window) -> np.ndarray:
    targets = np.asarray(cut.ids[cut.first :])
    losses = [-p[np.arange(len(p)), targets[at : at + len(p)]] for at, p in _log_probabilities(logits)]
    if not all(np.isfinite(part).all() for part in losses):
        raise KernelError(
            "a logit is not a finite number", "", "compare the model file's checksum with its publisher's"
        )
    return np.concatenate(losses)


def _compare(divergence: Divergence, logits: np.ndarray, reference: np.ndarray) -> None:
    for (_, p), (_, q) in zip(_log_probabilities(logits), _log_probabilities(reference), strict=True):
        divergence.kl.append((np.exp(q) * (q - p)).sum(axis=1))
    divergence.same_top.append(logits.argmax(axis=1) == reference.argmax(axis=1))


def _log_probabilities(logits: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float64 log-softmax of up to ROWS rows)"""
    for at in range(0, len(logits), ROWS):
        rows = logits[at : at + ROWS].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        yield at, rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def _summary(scores: Scores) -> dict[str, Any]:
    return {
        "scored_tokens": sum(map(len, scores.losses)),
        "loss": scores.mean,
        "perplexity": scores.perplexity,
        "perplexity_error": scores.perplexity_error,
    }
