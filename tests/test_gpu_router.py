"""The GPU's router, in Triton's interpreter, and its twin: against float64, and choice for choice against the CPU's."""

import numpy as np
import pytest
import torch

from cpu_kernels import Pool
from cpu_kernels import route as cpu_route
from gpu_kernels.device import Device
from gpu_kernels.router import _route_kernel, route, route_twin
from hetero import kernel_references as reference
from tests.gpu_compile import Case

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.filterwarnings("ignore:overflow encountered in exp"),  # the interpreter's numpy: exp(1e4) is infinite
    pytest.mark.filterwarnings("ignore:invalid value encountered"),  # and inf - inf is NaN, as it should be
]

V3 = {
    "used": 8,
    "groups": 8,
    "groups_used": 4,
    "group_score": "top2",
    "gating": "sigmoid",
    "normalize": True,
    "scale": 2.5,
}
V2 = V3 | {"used": 6, "groups_used": 3, "group_score": "max", "gating": "softmax", "normalize": False, "scale": 16.0}
NO_GROUPS = {"groups": 1, "groups_used": 1}
MODELS = {
    "V3": (256, V3),
    "V2": (160, V2),
    "V2-Lite": (64, V2 | NO_GROUPS | {"scale": 1.0}),
    "Kimi-K2": (384, V3 | NO_GROUPS),
    "512": (512, V3 | {"used": 10}),
    "one of few": (6, V3 | NO_GROUPS | {"used": 1}),
    "all of few": (6, V2 | {"groups": 3, "groups_used": 3, "used": 6}),
    "groups of one": (7, V3 | {"groups": 7, "groups_used": 3, "used": 3}),
}
_TYPES = {"logits": "*fp32", "bias": "*fp32", "ids": "*i32", "weights": "*fp32", "scale": "fp32"}
_RULE = {"USED": 8, "TOP2": True, "SOFTMAX": False, "NORMALIZE": True}
CASES = [
    Case(
        "route V3",
        _route_kernel,
        _TYPES,
        _RULE | {"GROUPS": 8, "SIZE": 32, "GROUPS_USED": 4},
        warps=1,
        registers=64,
        shared=0,
        contains={"LDG.E.128": 4, "REDUX": 3},
    ),
    Case(
        "route V2",
        _route_kernel,
        {name: type for name, type in _TYPES.items() if name != "bias"},
        {"USED": 6, "TOP2": False, "SOFTMAX": True, "NORMALIZE": False, "GROUPS": 8, "SIZE": 20, "GROUPS_USED": 3},
        warps=1,
        registers=64,
        shared=0,
        contains={"LDG.E.128": 2, "REDUX": 3},
    ),
    Case(
        "route 512",
        _route_kernel,
        _TYPES,
        _RULE | {"GROUPS": 1, "SIZE": 512, "GROUPS_USED": 1},
        warps=1,
        registers=80,
        shared=0,
        contains={"LDG.E.128": 8, "REDUX": 3},
    ),
]

VERBS = {"kernel": route, "twin": route_twin}
TOKENS = {"kernel": 3, "twin": 200}  # the interpreter takes a tenth of a second a token


@pytest.fixture(scope="module")
def device():
    return Device.interpreter()


@pytest.fixture(scope="module")
def pool():
    with Pool(1) as made:
        yield made


def logits_and_bias(experts, tokens, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (tokens, experts)).astype(np.float32), rng.normal(0, 0.2, experts).astype(np.float32)


def run(verb, device, logits, bias, **options):
    tensors = torch.from_numpy(logits.copy()), None if bias is None else torch.from_numpy(bias)
    ids, weights = VERBS[verb](device, *tensors, **options)
    assert ids.dtype == torch.int32 and weights.dtype == torch.float32
    return ids.numpy(), weights.numpy()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("verb", VERBS)
def test_equals_the_reference(device, verb, model):
    experts, options = MODELS[model]
    logits, bias = logits_and_bias(experts, TOKENS[verb])
    bias = None if options["gating"] == "softmax" else bias
    ids, weights = run(verb, device, logits, bias, **options)
    expected = reference.route(logits, bias, **options)
    np.testing.assert_array_equal(ids, expected[0])  # best first
    np.testing.assert_allclose(weights, expected[1], rtol=2e-6)


@pytest.mark.parametrize(
    "changed", [{"normalize": False}, {"scale": 1.0}, {"group_score": "max"}, {"gating": "softmax"}]
)
@pytest.mark.parametrize("verb", VERBS)
def test_every_option_matters(device, verb, changed):
    logits, bias = logits_and_bias(256, TOKENS[verb], seed=4)
    found = run(verb, device, logits, bias, **V3 | changed)
    expected = reference.route(logits, bias, **V3 | changed)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=2e-6)
    assert not np.allclose(found[1], run(verb, device, logits, bias, **V3)[1])


def broken_logits(rng, tokens, experts):
    """Logits of few values, hence full of ties; some NaN, some infinite, a row of each kind alone."""
    logits = rng.integers(-3, 4, (tokens, experts)).astype(np.float32)
    strange = rng.random((tokens, experts))
    rare = np.arange(tokens)[:, None] % 3 * 0.2  # none, some, most
    logits[strange < rare] = np.nan
    logits[(strange > 0.9) & (rare > 0)] = np.inf
    logits[(strange > 0.8) & (strange < 0.9) & (rare > 0)] = -np.inf
    logits[-1] = np.nan
    logits[-2, ::2] = np.nan
    logits[-3] = 0.0
    logits[-3, 0] = -0.0
    return logits


@pytest.mark.parametrize(
    ("model", "gating", "infinite_bias"),
    [("V3", "sigmoid", False), ("V3", "softmax", True), ("Kimi-K2", "sigmoid", True), ("V2", "softmax", False),
     ("V2", "sigmoid", True), ("groups of one", "sigmoid", True)],
)  # fmt: skip
@pytest.mark.parametrize("verb", VERBS)
def test_ties_and_broken_logits_end_as_on_the_cpu(device, pool, verb, model, gating, infinite_bias):
    experts, options = MODELS[model]
    rng = np.random.default_rng(5)
    logits = broken_logits(rng, 6 if verb == "kernel" else 60, experts)
    bias = rng.integers(-2, 3, experts).astype(np.float32) * np.float32(0.375)  # no two scores + bias are close
    if infinite_bias:
        bias[rng.integers(0, experts, 3)], bias[rng.integers(0, experts, 3)] = np.inf, -np.inf
        bias[experts // 2] = np.nan
    changed = options | {"gating": gating}
    found, expected = run(verb, device, logits, bias, **changed), cpu_route(pool, logits, bias, **changed)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=2e-6)


@pytest.mark.parametrize("verb", VERBS)
def test_equal_scores_go_to_the_lower_index(device, verb):
    ids, _ = run(verb, device, np.zeros((2, 256), np.float32), None, **V3)
    assert ids.tolist() == [list(range(8))] * 2
    logits = np.zeros((1, 160), np.float32)
    logits[0, [3, 17, 63, 99, 158]] = 1.0  # in vector registers and in their rest: equal logits, equal scores
    ids, _ = run(verb, device, logits, None, **V2 | NO_GROUPS)
    assert ids.tolist() == [[3, 17, 63, 99, 158, 0]]


@pytest.mark.parametrize("verb", VERBS)
def test_near_ties_are_never_further_apart_than_rounding(device, verb):
    rng = np.random.default_rng(7)
    logits = (rng.normal(0, 1, (TOKENS[verb], 1)) + rng.integers(-4, 5, (TOKENS[verb], 256)) * 2e-7).astype(np.float32)
    ids, _ = run(verb, device, logits, None, **V3 | NO_GROUPS)
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    chosen = np.take_along_axis(scores, ids.astype(np.int64), axis=1)
    np.put_along_axis(scores, ids.astype(np.int64), 0.0, axis=1)
    assert all(len(set(row)) == 8 for row in ids.tolist())
    assert (scores.max(axis=1) <= chosen.min(axis=1) * (1 + 1e-6)).all()
    assert (chosen[:, 1:] <= chosen[:, :-1] * (1 + 1e-6)).all()


@pytest.mark.parametrize("verb", VERBS)
def test_no_tokens(device, verb):
    ids, weights = run(verb, device, np.empty((0, 256), np.float32), None, **V3)
    assert ids.shape == weights.shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 7}, "groups"),
        ({"groups_used": 9}, "groups"),
        ({"used": 129}, "asked"),
        ({"gating": "tanh"}, "gating"),
        ({"group_score": "sum"}, "group_score"),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_refuses_impossible_options(device, verb, change, message):
    logits, bias = logits_and_bias(256, 1)
    with pytest.raises(ValueError, match=message):
        run(verb, device, logits, bias, **V3 | change)


@pytest.mark.parametrize("verb", VERBS)
def test_refuses_wrong_tensors(device, verb):
    logits, bias = logits_and_bias(256, 2)
    for wrong in ((logits[0], bias), (logits.astype(np.float64), bias), (logits, bias[:5])):
        with pytest.raises(ValueError, match="route"):
            run(verb, device, *wrong, **V3)
    strided = torch.from_numpy(logits).repeat(1, 2)[:, ::2]
    with pytest.raises(ValueError, match="contiguous"):
        VERBS[verb](device, strided, None, **V3)
