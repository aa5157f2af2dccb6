"""The distribution against transformers' logits processors in float64; the draw against the distribution."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from hetero.errors import KernelError, RequestError
from hetero.sampler import Sampler, Sampling, StopStrings

V3_VOCAB = 129_280
PLAIN = {"temperature": 1.0, "top_p": 1.0}


def logits_of(vocab_size: int, seed: int, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(vocab_size) * spread).astype(np.float32)


def reference(logits: np.ndarray, sampling: Sampling, seen: Iterable[int] = ()) -> np.ndarray:
    """Probabilities [vocab] in float64, by transformers' processors; bias and counted penalties written out here."""
    seen = list(seen)
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    for id, bias in sampling.logit_bias.items():
        scores[0, id] += bias
    if sampling.repetition_penalty != 1 and seen:
        scores = hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(torch.tensor([seen]), scores)
    for id in set(seen):
        scores[0, id] -= sampling.presence_penalty + sampling.frequency_penalty * seen.count(id)
    warpers = [hf.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(hf.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(hf.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        warpers.append(hf.MinPLogitsWarper(sampling.min_p))
    for warper in warpers:
        scores = warper(torch.tensor([seen]), scores)
    return torch.softmax(scores[0], -1).numpy()


def distribution(sampler: Sampler, logits: np.ndarray) -> np.ndarray:
    ids, probabilities = sampler.distribution(logits)
    assert (np.diff(ids) > 0).all()
    dense = np.zeros(len(logits))
    dense[ids] = probabilities
    return dense


SETTINGS: list[dict[str, Any]] = [
    {},
    {**PLAIN},
    {"temperature": 0.3, "top_p": 1.0},
    {"temperature": 2.5, "top_p": 0.9},
    {"temperature": 0.01},
    {**PLAIN, "top_k": 1},
    {**PLAIN, "top_k": 40},
    {**PLAIN, "top_k": 10**9},
    {**PLAIN, "top_p": 0.5},
    {**PLAIN, "top_p": 0.999},
    {**PLAIN, "top_p": 1e-6},
    {**PLAIN, "min_p": 0.05},
    {**PLAIN, "min_p": 1.0},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.5, "top_k": 7, "top_p": 0.6, "min_p": 0.3},
    {**PLAIN, "repetition_penalty": 1.3},
    {**PLAIN, "repetition_penalty": 0.8, "top_k": 20},
    {**PLAIN, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"repetition_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 1.5, "min_p": 0.01},
    {**PLAIN, "logit_bias": {3: 5.0, 4: -math.inf, 5: -100.0}},
]


@pytest.mark.parametrize("vocab_size", [9, 1000, V3_VOCAB])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_distribution_is_transformers(settings: dict[str, Any], vocab_size: int) -> None:
    seen = [1, 2, 2, 8, 2, 7]
    for seed, spread in ((1, 3.0), (2, 0.5)):
        logits = logits_of(vocab_size, seed, spread)
        sampler = Sampler(Sampling(**settings), vocab_size)
        for id in seen:
            sampler.accept(id)
        got, expected = distribution(sampler, logits), reference(logits, sampler.sampling, seen)
        assert np.array_equal(got > 0, expected > 0)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 4.0])
def test_top_p_cuts_where_the_sum_says(spread: float) -> None:
    """Shares a hair above and below that of the k most probable: by sums without rounding errors."""
    logits = logits_of(V3_VOCAB, 6, spread)
    weights = np.sort(np.exp((logits.astype(np.float64) - logits.max()) / 0.6))[::-1]
    total = math.fsum(weights)
    for k in (1, 30, 500, 20_000, 100_000):
        share = math.fsum(weights[:k]) / total
        hair = 0.01 * weights[k - 1] / total
        for top_p, count in ((share - hair, k), (share + hair, k + 1)):
            if 0 < top_p < 1 - 1e-9:
                ids, _ = Sampler(Sampling(top_p=top_p), V3_VOCAB).distribution(logits)
                assert len(ids) == count, (k, top_p)


def test_draws_follow_the_distribution() -> None:
    logits = logits_of(50, 3, 1.0)
    sampler = Sampler(Sampling(temperature=0.8, top_p=0.9, seed=5), 50)
    expected = distribution(sampler, logits)
    draws = 20_000
    counts = np.bincount([sampler.sample(logits) for _ in range(draws)], minlength=50)
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    chi_squared = ((counts - draws * expected)[kept] ** 2 / (draws * expected[kept])).sum()
    freedom = kept.sum() - 1
    assert freedom > 5
    assert chi_squared < freedom + 4 * math.sqrt(2 * freedom)


def test_same_seed_same_tokens() -> None:
    logits = [logits_of(1000, seed) for seed in range(50)]

    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(seed=seed), 1000)
        return [sampler.sample(row) for row in logits]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(None) != tokens(None)
    assert tokens(2**64 - 1) == tokens(2**64 - 1)


def test_greedy_takes_the_lowest_of_equals() -> None:
    sampler = Sampler(Sampling(temperature=0.0, top_k=3, top_p=0.1), 6)
    assert sampler.sample(np.array([0, 2, 1, 2, 2, -1], np.float32)) == 1
    assert sampler.sample(np.zeros(6, np.float32)) == 0
    assert distribution(sampler, np.array([0, 2, 1, 2, 2, -1], np.float32)).tolist() == [0, 1, 0, 0, 0, 0]


def test_greedy_sees_bias_and_penalties() -> None:
    logits = np.array([1.0, 3.0, 2.0, -1.0], np.float32)
    assert Sampler(Sampling(temperature=0.0, logit_bias={2: 1.5}), 4).sample(logits) == 2
    sampler = Sampler(Sampling(temperature=0.0, presence_penalty=1.5), 4)
    assert sampler.sample(logits) == 1
    sampler.accept(1)
    assert sampler.sample(logits) == 2
    assert logits.tolist() == [1.0, 3.0, 2.0, -1.0], "the caller's logits are left as they are"


def test_truncation_of_equals_keeps_the_lowest_ids() -> None:
    level = np.zeros(5000, np.float32)
    for options, kept in (
        ({"top_k": 3}, 3),
        ({"top_p": 0.5}, 2500),
        ({"top_p": 0.0}, 1),
        ({"top_k": 9, "top_p": 0.3}, 3),
    ):
        ids, probabilities = Sampler(Sampling(**{**PLAIN, **options}), 5000).distribution(level)
        assert ids.tolist() == list(range(kept)), options
        np.testing.assert_allclose(probabilities, 1 / kept)


def test_penalty_window() -> None:
    logits = np.zeros(4, np.float32)

    def penalised(window: int | None) -> list[int]:
        sampler = Sampler(Sampling(**PLAIN, presence_penalty=50.0, penalty_window=window), 4)
        for id in (0, 1, 1, 2):
            sampler.accept(id)
        return np.flatnonzero(distribution(sampler, logits) < 0.1).tolist()

    assert penalised(None) == [0, 1, 2]
    assert penalised(3) == [1, 2]
    assert penalised(1) == [2]
    assert penalised(0) == []


@pytest.mark.parametrize("window", [None, 0, 1, 3, 7, 50, 1 << 31])
def test_many_tokens_are_accepted_as_one_by_one(window: int | None) -> None:
    settings = Sampling(**PLAIN, repetition_penalty=1.3, frequency_penalty=0.7, penalty_window=window)
    logits, tokens = logits_of(9, 1, 2.0), np.random.default_rng(5).integers(0, 9, 24).tolist()
    one, many = Sampler(settings, 9), Sampler(settings, 9)
    for part in (tokens[:11], [], tokens[11:13], tokens[13:]):
        for id in part:
            one.accept(id)
        many.accept_all(part)
        assert np.array_equal(distribution(one, logits), distribution(many, logits))
        one.accept(4)
        many.accept(4)
        assert np.array_equal(distribution(one, logits), distribution(many, logits))


def test_extremes() -> None:
    huge = np.array([-3e38, 3e38, 3e38, 0], np.float32)
    for options in (
        {"temperature": 1e-300},
        {"temperature": 1e30, "top_p": 1.0},
        {"min_p": 0.5},
        {"logit_bias": {1: 1e300, 2: -1e300}},
        {"repetition_penalty": 1e-300, "presence_penalty": 1e300},
        {"repetition_penalty": 1e300, "presence_penalty": -1e300, "frequency_penalty": -1e300},
    ):
        sampler = Sampler(Sampling(seed=1, **options), 4)
        sampler.accept(1)
        sampler.accept(3)
        assert {sampler.sample(huge) for _ in range(20)} <= {0, 1, 2, 3}
        assert np.isclose(distribution(sampler, huge).sum(), 1)
    cold = Sampler(Sampling(temperature=1e-30, seed=1), 4)
    assert {cold.sample(huge) for _ in range(40)} == {1, 2}
    banned = Sampler(Sampling(**PLAIN, logit_bias={1: -math.inf, 2: -math.inf}, seed=1), 4)
    assert {banned.sample(np.array([0, 9, 9, 0], np.float32)) for _ in range(40)} == {0, 3}


def test_one_token() -> None:
    for options in ({}, {"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 0.0}):
        assert Sampler(Sampling(**options), 1).sample(np.zeros(1, np.float32)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers(bad: float) -> None:
    logits = np.zeros(10, np.float32)
    logits[7] = bad
    for temperature in (0.0, 1.0):
        with pytest.raises(KernelError, match="token 7"):
            Sampler(Sampling(temperature=temperature), 10).sample(logits)
    with pytest.raises(ValueError, match="shape"):
        Sampler(Sampling(), 11).sample(logits)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "0.5"},
        {"temperature": True},
        {"temperature": None},
        {"temperature": 10**400},
        {"top_p": -(10**5000)},
        {"seed": 10**5000},
        {"logit_bias": {1: 10**400}},
        {"logit_bias": {10**5000: 1.0}},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": -0.01},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"min_p": 1.5},
        {"min_p": -1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": math.inf},
        {"presence_penalty": math.nan},
        {"frequency_penalty": math.inf},
        {"penalty_window": -1},
        {"penalty_window": 2.0},
        {"seed": -1},
        {"seed": "x"},
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"max_tokens": 1.0},
        {"stop": "text"},
        {"stop": ("",)},
        {"stop": (1,)},
        {"logit_bias": [1]},
        {"logit_bias": {"1": 1.0}},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {1: math.inf}},
        {"logit_bias": {1: "x"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_impossible_values(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(RequestError, match=name) as refusal:
        Sampling(**settings)
    assert refusal.value.limit and refusal.value.remedy


def test_no_tokens_at_all() -> None:
    message = "max_tokens is 0; it must be a whole number, at least 1; leave it out to go on until the answer ends"
    with pytest.raises(RequestError, match=message):
        Sampling(max_tokens=0)


def test_impossible_bias() -> None:
    with pytest.raises(RequestError, match="token 10"):
        Sampler(Sampling(logit_bias={10: 1.0}), 10)
    with pytest.raises(RequestError, match="token -1"):
        Sampler(Sampling(logit_bias={-1: 1.0}), 10)
    nothing_left = Sampler(Sampling(logit_bias={0: -math.inf, 1: -math.inf}), 2)
    with pytest.raises(RequestError, match="every token"):
        nothing_left.sample(np.zeros(2, np.float32))


def stopped(text: str, stop: tuple[str, ...], cuts: Iterable[int] = ()) -> tuple[str, bool]:
    """All that is shown of `text` when it comes in the pieces between `cuts`."""
    strings = StopStrings(stop)
    borders = [0, *sorted(cuts), len(text)]
    shown, found = "", False
    for start, end in pairwise(borders):
        emitted, found = strings.push(text[start:end])
        shown += emitted
    return shown + strings.flush(), found


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("Hello. User: x", ("User:",), "Hello. "),
        ("no stop here", ("User:",), None),
        ("abcabd", ("abd",), "abc"),
        ("aaab", ("aab",), "a"),
        ("ends half: Use", ("User:",), None),
        ("xabc", ("abc", "b"), "xa"),  # "b" is complete first
        ("xab", ("ab", "b"), "x"),  # both are complete at once: the longest
        ("stop", ("stop",), ""),
        ("anything", (), None),
        ("日本語。終", ("。",), "日本語"),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], shown: str | None) -> None:
    expected = (text, False) if shown is None else (shown, True)
    for cuts in ((), range(1, len(text)), range(2, len(text), 3)):
        assert stopped(text, stop, cuts) == expected


@hypothesis_settings(deadline=None)
@given(
    text=st.text("ab", max_size=20),
    stop=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3).map(tuple),
    data=st.data(),
)
def test_cutting_the_text_changes_nothing(text: str, stop: tuple[str, ...], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text))))
    assert stopped(text, stop, cuts) == stopped(text, stop)
    shown, found = stopped(text, stop)
    assert text.startswith(shown)
    assert found == any(string in text for string in stop)
    assert not any(string in shown for string in stop)


def test_text_is_shown_as_soon_as_it_is_safe() -> None:
    strings = StopStrings(("END",))
    assert strings.push("abc") == ("abc", False)
    assert strings.push("E") == ("", False)
    assert strings.push("N") == ("", False)
    assert strings.push("x") == ("ENx", False)
    assert strings.push("yE") == ("y", False)
    assert strings.push("ND tail") == ("", True)
    assert strings.push("more") == ("", True)
    assert strings.flush() == ""
