"""Perplexity and divergence against closed forms and a naive twin; then on the engine, beside llama.cpp."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from hetero.errors import RequestError
from hetero.perplexity import evaluate, windows

VOCABULARY = 50


class Guesser:
    """Says with probability `p` that id + 1 comes next; the rest is shared evenly. `calls` keeps what it was shown."""

    def __init__(self, p: float, shift: float = 0.0, vocabulary: int = VOCABULARY):
        self.p, self.shift, self.vocabulary = p, shift, vocabulary
        self.calls: list[list[int]] = []

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        self.calls.append(list(ids))
        logits = np.full((len(ids), self.vocabulary), math.log((1 - self.p) / (self.vocabulary - 1)), np.float32)
        logits[np.arange(len(ids)), (np.asarray(ids) + 1) % self.vocabulary] = math.log(self.p)
        return logits + np.float32(self.shift)


def counting(n: int) -> list[int]:
    return [i % VOCABULARY for i in range(n)]


@pytest.mark.parametrize("shift", [0.0, 3000.0, -3000.0])
def test_perplexity_of_known_probabilities(shift: float) -> None:
    result = evaluate(windows(counting(100), 20, None, None), Guesser(0.25, shift))
    assert result["perplexity"] == pytest.approx(4.0, rel=1e-3 if shift else 1e-6)
    assert result["loss"] == pytest.approx(math.log(4.0), rel=1e-3 if shift else 1e-6)
    assert result["scored_tokens"] == 5 * 9
    assert result["perplexity_error"] == pytest.approx(0.0, abs=1e-3)


def test_perplexity_of_a_mixture() -> None:
    """Half of the tokens follow the rule: the mean loss is the mean of two logarithms, and its error their spread."""
    ids = [0, 0, 1, 1] * 4  # 0 -> 0 no, 0 -> 1 yes, 1 -> 1 no, 1 -> 0 no
    result = evaluate(windows(ids, 16, None, None), Guesser(0.5))
    losses = [math.log(2) if b == a + 1 else math.log(2 * (VOCABULARY - 1)) for a, b in pairwise(ids[8:])]
    assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    error = math.exp(np.mean(losses)) * np.std(losses, ddof=1) / math.sqrt(len(losses))
    assert result["perplexity_error"] == pytest.approx(error, rel=1e-6)


def test_windows_as_llama_cpp_cuts_them() -> None:
    ids = list(range(100, 1300))
    cuts = windows(ids, 512, None, 7)
    assert [cut.ids[0] for cut in cuts] == [7, 7]
    assert cuts[0].ids[1:] == ids[1:512] and cuts[1].ids[1:] == ids[513:1024]
    assert {len(cut.ids) - cut.first for cut in cuts} == {255}


def test_a_stride_scores_each_token_once() -> None:
    ids = list(range(100))
    cuts = windows(ids, 30, 10, None)
    scored = [id for cut in cuts for id in cut.ids[cut.first :]]
    assert scored == list(range(20, 100))
    assert all(cut.first >= 20 for cut in cuts)


def test_a_short_text_is_one_window() -> None:
    (cut,) = windows([5, 6, 7, 8, 9], 512, None, None)
    assert cut.ids == [5, 6, 7, 8, 9] and cut.first == 3


@pytest.mark.parametrize(("count", "window", "stride"), [(3, 512, None), (100, 2, None), (100, 20, 20), (100, 20, 0)])
def test_impossible_windows(count: int, window: int, stride: int | None) -> None:
    with pytest.raises(RequestError):
        windows(list(range(count)), window, stride, None)


def test_divergence_from_a_reference_in_closed_form() -> None:
    p, q, others = 0.25, 0.6, VOCABULARY - 1
    result = evaluate(windows(counting(300), 150, None, None), Guesser(p), Guesser(q))
    kl = q * math.log(q / p) + (1 - q) * math.log(((1 - q) / others) / ((1 - p) / others))
    reference = result["reference"]
    for name in ("kl_mean", "kl_median", "kl_99", "kl_max"):
        assert reference[name] == pytest.approx(kl, rel=1e-5)
    assert reference["top1_agreement"] == 1.0
    assert reference["perplexity"] == pytest.approx(1 / q, rel=1e-5)
    assert result["perplexity"] == pytest.approx(1 / p, rel=1e-5)


def test_top1_agreement_counts_tokens() -> None:
    result = evaluate(windows(counting(100), 100, None, None), Guesser(0.5), Guesser(0.001))
    assert result["reference"]["top1_agreement"] == 0.0
    assert evaluate(windows(counting(9), 9, None, None), Guesser(0.5), Guesser(0.5))["reference"]["kl_max"] == 0.0


def test_reference_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(RequestError, match="vocabulary"):
        evaluate(windows(counting(20), 20, None, None), Guesser(0.5), Guesser(0.5, vocabulary=60))


def test_progress_tells_the_perplexity_so_far() -> None:
    seen = []
    evaluate(windows(counting(60), 20, None, None), Guesser(0.5), progress=lambda *step: seen.append(step))
    assert seen == [(at, 3, "perplexity 2.0000") for at in (1, 2, 3)]
