"""The faults that ports of this model are known for, put into our own pass: the comparison must notice each."""

import dataclasses
import math

import numpy as np
import pytest

import hetero
import hetero.model
import hetero.side
from tests.deviation import agrees, worst
from tests.prompts import prompt

IDS = prompt(96)


def logits_of(path):
    engine, _ = hetero.load(path, hetero.RunConfig(kv="f32", context=128, threads=1))
    try:
        return engine.logits(IDS)
    finally:
        engine.close()


def halves_rotated_together(pool, x, cos, sin):
    """Pairs (i, i + R/2), as most other models have them, instead of (2i, 2i + 1)."""
    half = x.shape[-1] // 2
    while cos.ndim < x.ndim:
        cos, sin = cos[:, None], sin[:, None]
    left, right = x[..., :half].copy(), x[..., half:].copy()
    x[..., :half], x[..., half:] = left * cos - right * sin, right * cos + left * sin


def rope_order(patch):
    patch.setattr("hetero.side.rope", halves_rotated_together)  # of the queries
    patch.setattr("cpu_kernels.latent.rope", halves_rotated_together)  # of the keys


def mscale(patch):
    patch.setattr("hetero.attention.softmax_scale", lambda c: 1 / math.sqrt(c.nope_dim + c.rope.dimension))


def yarn_frequencies(patch):
    right = hetero.model.inverse_frequencies
    patch.setattr("hetero.model.inverse_frequencies", lambda rope: right(dataclasses.replace(rope, factor=1.0)))


def changed_rule(patch, **changes):
    right = hetero.side.route
    patch.setattr("hetero.side.route", lambda pool, logits, bias, **rule: right(pool, logits, bias, **(rule | changes)))


def group_limit(patch):
    changed_rule(patch, groups=1, groups_used=1)


def normalisation(patch):
    changed_rule(patch, normalize=False)


def bias_in_the_weights(patch):
    right = hetero.side.route

    def biased(pool, logits, bias, **rule):
        ids, _ = right(pool, logits, bias, **rule)
        scores = np.take_along_axis(1 / (1 + np.exp(-logits)) + bias, ids, axis=1)
        return ids, (rule["scale"] * scores / scores.sum(1, keepdims=True)).astype(np.float32)

    patch.setattr("hetero.side.route", biased)


FAULTS = [rope_order, mscale, yarn_frequencies, group_limit, bias_in_the_weights, normalisation]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_our_pass_shows(fault, model_file, reference, monkeypatch):
    exact = reference(model_file(), IDS)
    assert agrees(logits_of(model_file()), exact)
    fault(monkeypatch)
    broken = logits_of(model_file())
    assert not agrees(broken, exact)
    assert worst(broken, exact) > 1e-2  # by far, not by a rounding error
