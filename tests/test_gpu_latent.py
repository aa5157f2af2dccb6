"""The write of the latent, in Triton's interpreter, and its twin: against float64 and what the CPU caches."""

import numpy as np
import pytest
import torch

import gpu_kernels
from benchmarks.gpu_checks import check_latent, unrounded
from benchmarks.gpu_setup import Setup
from benchmarks.gpu_timing import Timer
from cpu_kernels import Pool, write_cache
from cpu_kernels import cache_layer as cpu_cache_layer
from gpu_kernels.cache import Layer, cache_layer
from gpu_kernels.device import Device
from gpu_kernels.latent import _latent_kernel, write_latent, write_latent_twin
from gpu_kernels.norm_rope import rms_norm, rms_norm_twin, rope, rope_twin
from hetero import kernel_references as reference
from tests.gpu_compile import Case
from tests.kernel_inputs import angle_tensors as angles
from tests.kernel_inputs import normal_tensor as normal

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # NaN * 0 in the interpreter's numpy
]

_TYPES = {
    "kv": "*fp32",
    "kv_stride": "i32",
    "norm": "*fp32",
    "eps": "fp32",
    "cos": "*fp32",
    "cos_stride": "i32",
    "sin": "*fp32",
    "sin_stride": "i32",
    "slots": "*i64",
    "rows": "i32",
}
_DIVISIBLE = [name for name in (*_TYPES, "values", "scales") if name != "eps"]
CASES = [
    Case(
        "write_latent f16",
        _latent_kernel,
        _TYPES | {"values": "*fp16", "scales": "*fp16"},
        {"C": 512, "R": 64, "Q8": False},
        divisible=_DIVISIBLE,
        registers=64,
        shared=1024,
        contains={"LDG.E.128": 2},
    ),
    Case(
        "write_latent q8_0",
        _latent_kernel,
        _TYPES | {"values": "*i8", "scales": "*fp16"},
        {"C": 512, "R": 64, "Q8": True},
        divisible=_DIVISIBLE,
        registers=64,
        shared=1024,
        contains={"LDG.E.128": 2},
        lacks=("I2F",),
    ),
]

NORMS = {"kernel": rms_norm, "twin": rms_norm_twin}
ROPES = {"kernel": rope, "twin": rope_twin}
WRITES = {"kernel": write_latent, "twin": write_latent_twin}


@pytest.fixture(scope="module")
def device():
    return Device.interpreter()


def latent_rows(verb, device, both, q_rows, norm, cos, sin):
    """What the verbs of the same side make of the latent and of the key, as numpy."""
    latent = both[:, q_rows : q_rows + len(norm)]
    key = both[:, q_rows + len(norm) :].clone()
    ROPES[verb](device, key, cos, sin)
    return NORMS[verb](device, latent, norm, 1e-6).numpy(), key.numpy()


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize(("q_rows", "latent", "key"), [(96, 512, 64), (0, 96, 32)])
@pytest.mark.parametrize("verb", WRITES)
def test_write_latent_caches_what_the_cpu_caches_of_the_same_numbers(device, verb, kv, q_rows, latent, key):
    both, norm, slots = normal(14, 3, q_rows + latent + key) * 3, normal(15, latent), np.array([130, 0, 64])
    both[1, q_rows : q_rows + 32] = 0  # a block without a scale
    both[2, q_rows + latent + 1] = 1e6  # saturates in f16
    both[2, q_rows + latent] = torch.nan
    norm[40] = torch.inf
    (cos, sin), before, layer = angles(3, key // 2), both.clone(), cache_layer(device, 3, kv, latent + key)
    expected = cpu_cache_layer(3, kv, latent + key)
    with Pool(1) as pool:
        write_cache(pool, expected, *latent_rows(verb, device, both, q_rows, norm, cos, sin), slots)
    WRITES[verb](device, both, q_rows, norm, 1e-6, cos, sin, layer, torch.from_numpy(slots))
    if kv == "f16":
        np.testing.assert_array_equal(layer.blocks(), expected)  # NaN where it is NaN
    else:
        same_blocks(layer.blocks(), expected)
    assert torch.equal(both.nan_to_num(), before.nan_to_num())


def same_blocks(found, expected):
    """q8_0 of the same bits, except in the codes under a NaN scale."""
    found, expected = (layer.reshape(-1, 34) for layer in (found, expected))
    np.testing.assert_array_equal(found[:, :2].copy().view(np.float16), expected[:, :2].copy().view(np.float16))
    broken = np.isnan(found[:, :2].copy().view(np.float16)[:, 0])
    assert 0 < broken.sum() < 10
    np.testing.assert_array_equal(found[~broken], expected[~broken])


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("verb", WRITES)
def test_write_latent_equals_the_reference(device, verb, kv):
    both, norm, slots, (cos, sin) = normal(16, 4, 640), normal(17, 512), torch.tensor([190, 3, 66, 67]), angles(4, 32)
    layer = cache_layer(device, 3, kv, 576)
    WRITES[verb](device, both, 64, norm, 1e-6, cos, sin, layer, slots)
    cached = reference.cache_values(layer.blocks())
    key = reference.rope(both[:, None, 576:].numpy(), cos.numpy(), sin.numpy())[:, 0]
    expected = np.concatenate([reference.rms_norm(both[:, 64:576].numpy(), norm.numpy(), 1e-6), key], axis=1)
    bound = {"f16": 2**-11, "q8_0": 1 / 250}[kv] * np.abs(expected).max()
    np.testing.assert_allclose(cached[slots], expected, atol=bound)
    cached[slots] = 0
    assert (cached == 0).all()  # and nothing else is written


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_kernel_and_twin_cache_the_same_bits(device, kv):
    """Of the benchmark's numbers, which neither norm nor rope rounds: what `benchmarks.gpu` holds a GPU to."""
    torch.manual_seed(7)
    setup = Setup(device, gpu_kernels, Timer(device, 0.0), plain=True)
    near, bits = check_latent(setup, kv)
    assert near["passed"] and bits["value"] == 0 and bits["passed"], bits
    rows = unrounded(setup, 3)
    root = rows.double().square().mean(1).sqrt()
    assert (torch.frexp(root).mantissa == 0.5).all() and len(rows.unique()) > 5


@pytest.mark.parametrize("verb", WRITES)
def test_write_latent_writes_no_slot_outside_the_layer(device, verb):
    both, norm, (cos, sin), layer = (
        normal(18, 3, 576),
        normal(19, 512),
        angles(3, 32),
        cache_layer(device, 1, "f16", 576),
    )
    fence = torch.full((3, 64, 576), 7.0, dtype=torch.float16)
    fenced = Layer(fence[1:2], layer.scales)
    WRITES[verb](device, both, 0, norm, 1e-6, cos, sin, fenced, torch.tensor([-1, 5, 64]))
    assert (fence.view(192, -1)[torch.arange(192) != 69] == 7.0).all() and (fence[1, 5] != 7.0).all()


@pytest.mark.parametrize("verb", WRITES)
def test_write_latent_refuses_what_does_not_fit(device, verb):
    both, norm, (cos, sin), layer = (
        normal(20, 2, 640),
        normal(21, 512),
        angles(2, 32),
        cache_layer(device, 1, "f16", 576),
    )
    slots = torch.tensor([3, 4])
    right = {"both": both, "q_rows": 64, "kv_norm": norm, "eps": 1e-6, "cos": cos, "sin": sin, "slots": slots}
    right["layer"] = layer
    for wrong in (
        {"both": both[0]},
        {"both": both.double()},
        {"q_rows": 128},
        {"q_rows": -1},
        {"kv_norm": norm[:480]},
        {"cos": cos[:1]},
        {"sin": sin[:, :5]},
        {"slots": slots.int()},
        {"slots": slots[:1]},
        {"layer": cache_layer(device, 1, "f16", 512)},
    ):
        with pytest.raises(ValueError, match="write_latent"):
            WRITES[verb](device, **right | wrong)
    (cos, sin), layer = angles(2, 40), cache_layer(device, 1, "q8_0", 576)  # 496 + 80 values are 576 too
    with pytest.raises(ValueError, match="multiples of 32"):
        WRITES[verb](device, **right | {"kv_norm": norm[:496], "cos": cos, "sin": sin, "layer": layer})
