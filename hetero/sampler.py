"""From logits to the next token, and from streamed text to where it must stop.

The order is the one of transformers and vLLM, for which DeepSeek's recommended values were chosen:

    logit bias -> repetition, presence, frequency penalties -> temperature -> top-k -> top-p -> min-p -> draw

Each truncation sees the probabilities that the one before it left, and keeps at least one token. Temperature 0 takes
the largest penalised logit. What a grammar forbids has no probability from the beginning. Of equal values the lowest id
wins, everywhere. (llama.cpp applies temperature last, so its top-p keeps other tokens at the same settings.)
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetero.errors import KernelError, RequestError
from hetero.nucleus import Nucleus, at_least
from placement.document import short

LARGE = 1 << 64  # for an integer: larger ones need not be floats

# Why one would
_LEFT_OUT = {
    "max_tokens": "to go on until the answer ends or the context is full",
    "penalty_window": "to look at all tokens",
    "seed": "for a new one each time",
}


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. The defaults are what DeepSeek recommends for R1."""

    temperature: float = 0.6  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 0.95  # 1: off; 0: only the most probable
    min_p: float = 0.0  # 0: off; relative to the most probable
    repetition_penalty: float = 1.0  # divides positive logits of seen tokens, multiplies negative ones; 1: off
    presence_penalty: float = 0.0  # subtracted once from the logit of every seen token
    frequency_penalty: float = 0.0  # subtracted as often as the token was seen
    penalty_window: int | None = None  # "seen" means within this many last tokens, prompt included; None: all
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # -inf forbids a token
    seed: int | None = None  # None: a new one each time
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None  # None: until the context is full

    def __post_init__(self) -> None:
        real(self, "temperature", 0.0, math.inf)
        real(self, "top_p", 0.0, 1.0)
        real(self, "min_p", 0.0, 1.0)
        real(self, "repetition_penalty", math.ulp(0.0), math.inf)
        real(self, "presence_penalty", -math.inf, math.inf)
        real(self, "frequency_penalty", -math.inf, math.inf)
        whole(self, "top_k", 0)
        for name, least in (("penalty_window", 0), ("seed", 0), ("max_tokens", 1)):
            if getattr(self, name) is not None:
                whole(self, name, least)
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise RequestError(f"stop is {short(self.stop)}", "it is a tuple of strings", "leave out empty ones")
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias is {short(self.logit_bias)}", "it maps token ids to numbers", "write one")
        for id, bias in self.logit_bias.items():
            if not is_whole(id) or not is_real(bias) or math.isnan(bias) or bias == math.inf:
                found = f"logit_bias maps {short(id)} to {short(bias)}"
                raise RequestError(found, "it maps token ids to numbers below infinity", "correct that one")


def is_real(value: Any) -> bool:
    """Not an integer that is no float any more."""
    return is_whole(value) or (isinstance(value, Real) and not isinstance(value, Integral))


def is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and -LARGE < int(value) < LARGE


def real(sampling: Sampling, name: str, low: float, high: float) -> None:
    value = getattr(sampling, name)
    if not is_real(value) or not math.isfinite(value) or not low <= value <= high:
        bounds = "a finite number" if low == -math.inf else "above 0" if 0 < low < 1e-9 else f"at least {low:g}"
        limit = bounds if high == math.inf else f"from {low:g} to {high:g}"
        raise RequestError(f"{name} is {short(value)}", f"it must be {limit}", f"the default is {default_of(name)}")


def whole(sampling: Sampling, name: str, least: int) -> None:
    value = getattr(sampling, name)
    if not is_whole(value) or value < least:
        limit = f"it must be a whole number, at least {least}"
        limit += " and below 2**64" if isinstance(value, Integral) and int(value) > least else ""
        remedy = f"the default is {default_of(name)}" if name not in _LEFT_OUT else f"leave it out {_LEFT_OUT[name]}"
        raise RequestError(f"{name} is {short(value)}", limit, remedy)


def default_of(name: str) -> Any:
    return Sampling.__dataclass_fields__[name].default


class Sampler:
    """Chooses the tokens of one sequence. `accept_all` tells it the prompt, `accept` every token chosen."""

    def __init__(self, sampling: Sampling, vocab_size: int):
        self.sampling, self.vocab_size = sampling, vocab_size
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))
        self._nucleus = Nucleus(vocab_size)
        self._all_ids = np.arange(vocab_size)
        self._all_ids.flags.writeable = False
        self._bias_ids = np.array(list(sampling.logit_bias), np.int64)
        self._bias = np.array(list(sampling.logit_bias.values()), np.float64)
        for id in sampling.logit_bias:
            if not 0 <= id < vocab_size:
                raise RequestError(f"logit_bias names token {id}", f"the vocabulary has the ids 0 to {vocab_size - 1}")
        self._penalizes = (
            sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        )
        self._window: deque[int] = deque()
        self._counts = np.zeros(vocab_size if self._penalizes else 0, np.int32)  # occurrences within the window

    def accept(self, id: int) -> None:
        if not self._penalizes or self.sampling.penalty_window == 0:
            return
        self._counts[id] += 1
        if self.sampling.penalty_window is not None:
            self._window.append(id)
            if len(self._window) > self.sampling.penalty_window:
                self._counts[self._window.popleft()] -= 1

    def accept_all(self, ids: NDArray[np.integer[Any]] | Sequence[int]) -> None:
        """As `accept` of each, in this order: a prompt may have a hundred thousand."""
        window = self.sampling.penalty_window
        if not self._penalizes or window == 0:
            return
        new = np.asarray(ids, np.int64)
        if window is not None:
            new = np.concatenate([np.array(self._window, np.int64), new])[-window:]
            self._window = deque(new.tolist())
            self._counts[:] = 0
        self._counts += np.bincount(new, minlength=self.vocab_size).astype(np.int32)

    def sample(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """logits [vocab]; they are left as they are. `allowed` [vocab]: no other token is chosen."""
        if logits.shape != (self.vocab_size,):
            raise ValueError(f"logits have shape {logits.shape}, the vocabulary {self.vocab_size}")
        finite = np.isfinite(logits)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise KernelError(
                f"the logit of token {bad} is {logits[bad]}",
                "logits are finite numbers",
                "the model file may be damaged; compare its checksum with the publisher's",
            )
        logits = self._penalized(logits)
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
            if logits.max() == -np.inf:
                raise RequestError("no token is allowed here", "logit_bias and the constraint leave none", "loosen one")
        if self.sampling.temperature == 0:
            return int(np.argmax(logits))
        ids, weights = self._candidates(logits)
        cumulative = np.cumsum(weights, out=weights)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        last = np.searchsorted(cumulative, cumulative[-1], side="left")  # rounding must not reach a weight of zero
        return int(ids[min(drawn, last)])

    def distribution(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The ids that `sample` may return, ascending, and the probability of each."""
        logits = self._penalized(logits)
        if self.sampling.temperature == 0:
            return np.array([np.argmax(logits)]), np.ones(1)
        ids, weights = self._candidates(logits)
        return ids, weights / weights.sum()

    def _penalized(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if not len(self._bias) and not self._penalizes:
            return logits
        logits = logits.copy()
        logits[self._bias_ids] = limited(logits[self._bias_ids] + self._bias)
        if self._penalizes:
            s = self.sampling
            seen = np.flatnonzero(self._counts)
            values = logits[seen].astype(np.float64)
            with np.errstate(over="ignore"):
                values = np.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
                values -= s.presence_penalty + s.frequency_penalty * self._counts[seen]
            logits[seen] = limited(values)
        if logits.max() == -np.inf:
            raise RequestError("logit_bias forbids every token", "one must be left", "remove some entries")
        return logits

    def _candidates(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids in ascending order, and probabilities up to a common factor."""
        s = self.sampling
        ids = self._all_ids
        if 0 < s.top_k < self.vocab_size:
            ids = largest(logits, s.top_k)
            logits = logits[ids]
        if s.top_p < 1:
            kept, weights = self._nucleus(logits, s.temperature, s.top_p)
            ids = kept if ids is self._all_ids else ids[kept]
        else:
            weights = self._nucleus.weights(logits, logits.max(), s.temperature)
        if s.min_p > 0:
            kept = np.flatnonzero(weights >= s.min_p * weights.max())
            ids, weights = ids[kept], weights[kept]
        return ids, weights


def limited(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """In float32, the extremes at its largest number; -inf, a forbidden token, stays."""
    most = np.finfo(np.float32).max
    return np.where(np.isneginf(values), values, np.clip(values, -most, most)).astype(np.float32)


def largest(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Positions of the `count` largest, ascending; of equal values the first ones."""
    return at_least(values, np.partition(values, len(values) - count)[len(values) - count], count)


class StopStrings:
    """Finds stop strings in streamed text, across the borders of its pieces; what might become one is held back.

    The string that is complete first stops, the longest of several: how the text was cut into pieces has no influence.
    `found` is this string.
    """

    def __init__(self, stop: tuple[str, ...]):
        self._stop, self._held = stop, ""
        self.found: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """What may be shown now, and whether a stop string was found; the stop string itself is never shown."""
        if self.found is not None:
            return "", True
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            end, start = min(ends)
            self._held, self.found = "", text[start:end]
            return text[:start], True
        keep = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The text ended: what was held back is no stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
