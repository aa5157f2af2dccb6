"""Experts with negative ids live elsewhere (on a GPU): they are left out, whatever the others are."""

import os

import numpy as np
import pytest

from cpu_kernels import Pool, ffn, interleave, routed_experts, topology
from cpu_kernels.gated import Gated
from tests.random_weights import as_multiplied, random_matrix

EXPERTS, HIDDEN, COLUMNS, USED = 6, 256, 512, 4
TYPES = [("Q4_K", "Q4_K", "Q6_K"), ("Q8_0", "F16", "Q5_0")]


@pytest.fixture
def rng():
    return np.random.default_rng(17)


def network(names, rng, experts=EXPERTS, hidden=HIDDEN):
    shapes = [(experts, hidden, COLUMNS)] * 2 + [(experts, COLUMNS, hidden)]
    return [random_matrix(type, shape, rng) for type, shape in zip(names, shapes, strict=True)]


def matrices(network):
    return tuple(matrix for matrix, _ in network)


def inputs(rng, tokens):
    """The first token has all its experts here, the second none, the others some."""
    ids = np.array([rng.permutation(EXPERTS)[:USED] for _ in range(tokens)], np.int32)
    ids[1:] = np.where(rng.random(ids[1:].shape) < 0.5, np.int32(-1), ids[1:])
    ids[1:2] = [-1, -7, -(2**31), -1]
    return rng.standard_normal((tokens, COLUMNS), np.float32), ids, rng.random(ids.shape, np.float32)


def reference(x, ids, weights, network):
    """float64, except that the hidden values are rounded to float32 before they become 8-bit codes."""
    out = np.zeros(x.shape)
    for t, j in np.ndindex(ids.shape):
        if ids[t, j] >= 0:
            (g, wg), (u, wu), (d, wd) = ((matrix, values[ids[t, j]]) for matrix, values in network)
            gate, up = as_multiplied(x[t], g) @ wg.T, as_multiplied(x[t], u) @ wu.T
            hidden = gate / (1 + np.exp(np.minimum(-gate, 700))) * up
            out[t] += weights[t, j] * (as_multiplied(hidden.astype(np.float32), d) @ wd.T)
    return out


@pytest.mark.parametrize("names", TYPES)
def test_the_others_are_summed(rng, names):
    routed = network(names, rng)
    given = [inputs(rng, tokens) for tokens in (1, 2, 3, 8, 40)]
    with Pool(2) as pool:
        for networks in (matrices(routed), tuple(interleave(pool, w) for w in matrices(routed))):
            for x, ids, weights in given:
                got, expected = routed_experts(pool, networks, x, ids, weights), reference(x, ids, weights, routed)
                # One 8-bit code may fall on the other side of the middle: a step of 1/127 in one product of 256.
                np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
                assert np.median(np.abs(got - expected)) <= 2e-6 * np.abs(expected).max()
                assert not got[1:2].any()


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_token_is_what_its_present_experts_make_it(rng, monkeypatch, nodes):
    """The same bits as a call for this token with these experts alone; with shared expert and residual."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    monkeypatch.setattr(topology, "nodes", lambda: (topology.Node(0, cpus * 4, 0),))
    routed, shared = matrices(network(TYPES[0], rng, hidden=512)), matrices(network(TYPES[0], rng, 1, 512))
    with Pool(3, nodes=nodes) as pool:
        parts = [Gated.split(pool, *each) for each in (routed, shared)]
        for tokens in (1, 2, 8, 40):
            x, ids, weights = inputs(rng, tokens)
            got = routed_experts(pool, parts[0], x, ids, weights, parts[1], x)
            for t in range(tokens):
                here = ids[t] >= 0
                alone = ids[t : t + 1, here].copy(), weights[t : t + 1, here].copy()
                one = x[t : t + 1]
                if here.any():
                    expected = routed_experts(pool, parts[0], one, *alone, parts[1], one)
                else:
                    expected = ffn(pool, parts[1], one, one)
                np.testing.assert_array_equal(got[t : t + 1], expected)


@pytest.mark.parametrize("tokens", [1, 8, 40])
def test_none_here(rng, tokens):
    routed, shared = matrices(network(TYPES[0], rng)), matrices(network(TYPES[0], rng, 1))
    x = rng.standard_normal((tokens, COLUMNS), np.float32)
    ids, weights = np.full((tokens, USED), -1, np.int32), np.ones((tokens, USED), np.float32)
    with Pool(2) as pool:
        out = np.full_like(x, np.nan)
        assert routed_experts(pool, routed, x, ids, weights, out=out) is out
        assert not out.any()
        np.testing.assert_array_equal(routed_experts(pool, routed, x, ids, weights, None, x), x)
        got = routed_experts(pool, routed, x, ids, weights, shared)
        np.testing.assert_array_equal(got, ffn(pool, shared, x))


def test_a_recorded_call_takes_what_is_there_now(rng):
    routed = matrices(network(TYPES[0], rng))
    x, ids, weights = inputs(rng, 8)
    with Pool(2) as pool:
        expected = routed_experts(pool, routed, x, ids, weights)
        changing, out = np.full_like(ids, -1), np.empty_like(x)
        with pool.record() as program:
            routed_experts(pool, routed, x, changing, weights, out=out)
        assert not out.any()
        changing[...] = ids
        program.replay()
        np.testing.assert_array_equal(out, expected)
        changing[...] = -1
        program.replay()
        assert not out.any()


def test_numbers_beyond_the_last_expert_are_refused(rng):
    routed = matrices(network(TYPES[0], rng))
    x, ids, weights = inputs(rng, 3)
    ids[2, 1] = EXPERTS
    with Pool(1) as pool, pytest.raises(ValueError, match="expert 6 of token 2; experts 0 to 5 exist"):
        routed_experts(pool, routed, x, ids, weights)
