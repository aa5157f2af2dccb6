"""The twins of the small kernels against cpu_kernels, over many tokens at the shapes of real models; without Triton."""

import numpy as np
import pytest
import torch

from cpu_kernels import Pool
from cpu_kernels import rms_norm as cpu_rms_norm
from cpu_kernels import rope as cpu_rope
from cpu_kernels import route as cpu_route
from gpu_kernels import Device, twins
from tests.kernel_inputs import normal

V3 = {"used": 8, "groups": 8, "groups_used": 4, "group_score": "top2", "gating": "sigmoid", "normalize": True}
ROUTERS = {
    "demo": (16, V3 | {"used": 4, "groups": 4, "groups_used": 2, "scale": 2.5}),
    "V3": (256, V3 | {"scale": 2.5}),
    "V2": (160, V3 | {"used": 6, "groups_used": 3, "group_score": "max", "gating": "softmax", "scale": 16.0}),
}
TOKENS = 3000


@pytest.fixture(scope="module")
def pool():
    with Pool(1) as made:
        yield made


@pytest.fixture(scope="module")
def device():
    return Device.plain()


@pytest.mark.parametrize("columns", [256, 1536, 7168])
def test_rms_norm(pool, device, columns):
    x, add, weight = normal(1, 300, columns) * 5, normal(2, 300, columns), normal(3, columns)
    summed = torch.from_numpy(x.copy())
    found = twins.rms_norm(device, summed, torch.from_numpy(weight), 1e-6, add=torch.from_numpy(add))
    expected = cpu_rms_norm(pool, x, weight, 1e-6, add=add)
    np.testing.assert_array_equal(summed.numpy(), x)
    np.testing.assert_allclose(found.numpy(), expected, rtol=3e-7)


@pytest.mark.parametrize(("heads", "nope"), [(4, 64), (128, 128)])
def test_rope(pool, device, heads, nope):
    theta = np.outer(np.arange(40) * 4001, 10000.0 ** (-np.arange(32) / 32))
    cos, sin = np.cos(theta).astype(np.float32), np.sin(theta).astype(np.float32)
    q = normal(4, 40, heads, nope + 64)
    turned = torch.from_numpy(q.copy())
    twins.rope(device, turned[:, :, nope:], torch.from_numpy(cos), torch.from_numpy(sin))
    cpu_rope(pool, q[:, :, nope:], cos, sin)
    np.testing.assert_allclose(turned.numpy(), q, atol=1e-6)


@pytest.mark.parametrize("model", ROUTERS)
@pytest.mark.parametrize("spread", [0.05, 2.0])
def test_route_chooses_as_the_cpu_up_to_ties_in_the_last_bits(pool, device, model, spread):
    experts, rule = ROUTERS[model]
    logits, bias = normal(5, TOKENS, experts) * np.float32(spread), normal(6, experts) * np.float32(0.02)
    ids, weights = twins.route(device, torch.from_numpy(logits), torch.from_numpy(bias), **rule)
    expected = cpu_route(pool, logits, bias, **rule)
    same = (ids.numpy() == expected[0]).all(axis=1)
    assert same.mean() > 0.99
    np.testing.assert_allclose(weights.numpy()[same], expected[1][same], rtol=2e-6)
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    if rule["gating"] == "softmax":
        scores = np.exp(logits.astype(np.float64))
        scores /= scores.sum(axis=1, keepdims=True)
    size = experts // rule["groups"]
    kept = [np.sort(each // size, axis=1) for each in (ids.numpy(), expected[0])]
    alike = (kept[0] == kept[1]).all(axis=1)  # where groups tie, all of their experts change
    chosen = [np.take_along_axis(scores + bias, each.astype(np.int64), axis=1) for each in (ids.numpy(), expected[0])]
    np.testing.assert_allclose(chosen[0][alike], chosen[1][alike], atol=2e-7)  # float32's rounding of a score near 1
