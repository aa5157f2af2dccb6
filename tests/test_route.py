import numpy as np
import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from cpu_kernels.pool import Pool
from cpu_kernels.router import route
from hetero import kernel_references as reference

V3 = {
    "used": 8,
    "groups": 8,
    "groups_used": 4,
    "group_score": "top2",
    "gating": "sigmoid",
    "normalize": True,
    "scale": 2.5,
}
V2 = {
    "used": 6,
    "groups": 8,
    "groups_used": 3,
    "group_score": "max",
    "gating": "softmax",
    "normalize": False,
    "scale": 16.0,
}
NO_GROUPS = {"groups": 1, "groups_used": 1}
MODELS = {
    "V3": (256, V3),
    "V2": (160, V2),
    "V2-Lite": (64, V2 | NO_GROUPS | {"scale": 1.0}),
    "Kimi-K2": (384, V3 | NO_GROUPS),
}


@pytest.fixture(scope="module", params=[1, 2])
def pool(request):
    with Pool(request.param) as made:
        yield made


def logits_and_bias(experts, tokens=200, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (tokens, experts)).astype(np.float32), rng.normal(0, 0.2, experts).astype(np.float32)


def assert_same_experts(found, expected):
    """The same experts with the same weights; the order among the chosen carries no meaning."""
    ids, weights = found
    order, expected_order = np.argsort(ids, axis=1), np.argsort(expected[0], axis=1)
    taken = [np.take_along_axis(array, order, axis=1) for array in (ids, weights)]
    wanted = [np.take_along_axis(array, expected_order, axis=1) for array in expected]
    np.testing.assert_array_equal(taken[0], wanted[0])
    np.testing.assert_allclose(taken[1], wanted[1], rtol=2e-6)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("biased", [True, False])
def test_equals_the_reference(pool, model, biased):
    experts, options = MODELS[model]
    logits, bias = logits_and_bias(experts)
    bias = bias if biased else None
    ids, weights = route(pool, logits, bias, **options)
    assert ids.dtype == np.int32 and weights.dtype == np.float32
    expected = reference.route(logits, bias, **options)
    np.testing.assert_array_equal(ids, expected[0])  # best first
    np.testing.assert_allclose(weights, expected[1], rtol=2e-6)


@pytest.mark.parametrize(
    "changed", [{"normalize": False}, {"scale": 1.0}, {"group_score": "max"}, {"gating": "softmax"}]
)
def test_every_option_matters_and_equals_the_reference(pool, changed):
    logits, bias = logits_and_bias(256)
    assert_same_experts(route(pool, logits, bias, **V3 | changed), reference.route(logits, bias, **V3 | changed))
    assert not np.allclose(route(pool, logits, bias, **V3 | changed)[1], route(pool, logits, bias, **V3)[1])


def identity(router, experts):
    """A router whose hidden state is the logits."""
    with torch.no_grad():
        router.weight.copy_(torch.eye(experts))
    return router


def test_equals_transformers_v3(pool):
    logits, bias = logits_and_bias(256, seed=1)
    bias -= 0.8  # most kept experts score below 0: a masked score of 0.0 would win
    config = DeepseekV3Config(
        hidden_size=256, n_routed_experts=256, num_experts_per_tok=8, n_group=8, topk_group=4, routed_scaling_factor=2.5
    )
    router = identity(DeepseekV3TopkRouter(config), 256)
    router.e_score_correction_bias.copy_(torch.from_numpy(bias))
    with torch.no_grad():
        _, weights, ids = router(torch.from_numpy(logits))
    assert_same_experts(route(pool, logits, bias, **V3), (ids.numpy(), weights.numpy()))


@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy"])
def test_equals_transformers_v2(pool, method):
    logits, _ = logits_and_bias(160, seed=2)
    config = DeepseekV2Config(
        hidden_size=160, n_routed_experts=160, num_experts_per_tok=6, n_group=8, topk_group=3,
        routed_scaling_factor=16.0, topk_method=method,
    )  # fmt: skip
    with torch.no_grad():
        _, weights, ids = identity(DeepseekV2TopkRouter(config), 160)(torch.from_numpy(logits))
    options = V2 if method != "greedy" else V2 | NO_GROUPS
    assert_same_experts(route(pool, logits, None, **options), (ids.numpy(), weights.numpy()))


def test_bias_chooses_but_does_not_weigh(pool):
    logits = np.zeros((1, 8), np.float32)
    bias = np.array([0, 0, 0, 0, 0, 1, 0, 2], np.float32)
    options = V3 | {"used": 2, **NO_GROUPS, "normalize": False, "scale": 1.0}
    ids, weights = route(pool, logits, bias, **options)
    assert ids.tolist() == [[7, 5]] and weights.tolist() == [[0.5, 0.5]]


def test_two_best_decide_between_groups(pool):
    logits = np.array([[9, -9, -9, -9, 2, 2, -9, -9]], np.float32)  # sums of two: 0.9999 against 1.76
    options = V3 | {"used": 2, "groups": 2, "groups_used": 1}
    assert route(pool, logits, None, **options)[0].tolist() == [[4, 5]]
    assert route(pool, logits, None, **options | {"group_score": "max"})[0].tolist()[0][0] == 0


def test_equal_scores_go_to_the_lower_index(pool):
    ids, _ = route(pool, np.zeros((2, 256), np.float32), None, **V3)
    assert ids.tolist() == [list(range(8))] * 2


def test_extreme_and_broken_logits_give_valid_experts(pool):
    logits, bias = logits_and_bias(256, tokens=4)
    logits[0], logits[1, ::2], logits[2] = 1e4, -1e4, -1e4
    for options in (V3, V3 | {"gating": "softmax"}):
        ids, weights = route(pool, logits, bias, **options)
        assert np.isfinite(weights).all() and (np.sort(ids, axis=1)[:, 1:] > np.sort(ids, axis=1)[:, :-1]).all()
        ids, _ = route(pool, np.full((1, 256), np.nan, np.float32), bias, **options)
        assert ((ids >= 0) & (ids < 256)).all() and len(set(ids[0])) == 8


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
def test_refuses_impossible_options(pool, change, message):
    logits, bias = logits_and_bias(256, tokens=1)
    with pytest.raises(ValueError, match=message):
        route(pool, logits, bias, **V3 | change)


def test_refuses_wrong_arrays(pool):
    logits, bias = logits_and_bias(256, tokens=1)
    for arguments in ((logits[0], bias), (logits.astype(np.float64), bias), (logits, bias[:5])):
        with pytest.raises(ValueError, match="route"):
            route(pool, *arguments, **V3)
