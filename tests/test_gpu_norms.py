"""Norm and rope, in Triton's interpreter, and their twins: against float64 and the CPU's."""

import numpy as np
import pytest
import torch

from cpu_kernels import Pool
from cpu_kernels import rms_norm as cpu_rms_norm
from gpu_kernels.arranged import arrange_twin
from gpu_kernels.device import Device
from gpu_kernels.norm_rope import (
    _arranged_norm_kernel,
    _norm_kernel,
    _rope_kernel,
    rms_norm,
    rms_norm_twin,
    rope,
    rope_twin,
)
from hetero import kernel_references as reference
from tests.gpu_compile import Case
from tests.kernel_inputs import angle_tensors as angles
from tests.kernel_inputs import normal_tensor as normal

pytestmark = pytest.mark.interpreter

_NORM = {
    "x": "*fp32",
    "x_stride": "i32",
    "addend": "*fp32",
    "addend_stride": "i32",
    "weight": "*fp32",
    "eps": "fp32",
    "out": "*fp32",
    "out_stride": "i32",
}
_ARRANGED_NORM = _NORM | {"values": "*fp32", "sums": "*fp32"}
_HALF_NORM = _NORM | {"values": "*fp16", "sums": "*fp32", "scale": "*fp32"}
_ANGLES = {"cos": "*fp32", "cos_stride": "i32", "sin": "*fp32", "sin_stride": "i32"}
_ROPE = {"x": "*fp32", "token_stride": "i32", "head_stride": "i32", "heads": "i32"} | _ANGLES


def _case(name, kernel, types, constants, **demands):
    """As the models launch it: every address and every stride divides by 16."""
    divisible = [parameter for parameter, type in types.items() if type != "fp32"]
    return Case(name, kernel, types, constants, divisible=divisible, **demands)


CASES = [
    _case(
        "rms_norm 7168",
        _norm_kernel,
        _NORM,
        {"K": 7168, "BLOCK": 8192},
        warps=16,
        registers=48,
        shared=1024,
        contains={"LDG.E.128": 12, "STG.E.128": 8},
    ),
    _case(
        "rms_norm 7168 arranged",
        _arranged_norm_kernel,
        _ARRANGED_NORM,
        {"K": 7168, "BLOCK": 8192},
        warps=16,
        registers=64,
        shared=2048,
        contains={"LDG.E.128": 12, "STG.E.128": 12},
    ),
    _case(
        "rms_norm 7168 arranged as float16",
        _arranged_norm_kernel,
        _HALF_NORM,
        {"K": 7168, "BLOCK": 8192},
        warps=16,
        registers=64,
        shared=2048,
        contains={"LDG.E.128": 12, "STG.E.128": 8, "STG.E.64": 4},
    ),
    _case(
        "rms_norm 1536",
        _norm_kernel,
        {name: type for name, type in _NORM.items() if name != "addend"},
        {"K": 1536, "BLOCK": 2048},
        registers=64,
        shared=1024,
        contains={"LDG.E.128": 6, "STG.E.128": 3},  # 1536 of 2048: what is masked as a whole is not there
    ),
    _case(
        "rope 128 heads",
        _rope_kernel,
        _ROPE,
        {"R": 64, "BLOCK": 64, "HEADS": 16},
        registers=64,
        shared=0,
        contains={"LDG.E.128": 2, "STG.E.128": 2},
    ),
]

NORMS = {"kernel": rms_norm, "twin": rms_norm_twin}
ROPES = {"kernel": rope, "twin": rope_twin}


@pytest.fixture(scope="module")
def device():
    return Device.interpreter()


def expected_norm(x, weight, eps):
    return reference.rms_norm(x.numpy(), weight.numpy(), eps)


@pytest.mark.parametrize(("tokens", "columns"), [(1, 7168), (5, 512), (3, 2), (2, 1001), (0, 64)])
@pytest.mark.parametrize("verb", NORMS)
def test_rms_norm_equals_the_reference(device, verb, tokens, columns):
    x, weight = normal(1, tokens, columns) * 30, normal(2, columns)
    found = NORMS[verb](device, x, weight, 1e-6)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected_norm(x, weight, 1e-6), rtol=1e-6)


@pytest.mark.parametrize("verb", NORMS)
def test_rms_norm_loses_nothing_beside_a_large_value(device, verb):
    x, weight = torch.full((1, 7168), 0.15), torch.ones(7168)
    x[0, 4000] = 1000.0  # a running sum would drop the squares of the others
    np.testing.assert_allclose(NORMS[verb](device, x, weight, 0.0), expected_norm(x, weight, 0.0), rtol=4e-7)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("verb", NORMS)
def test_rms_norm_of_numbers_whose_squares_are_infinite(device, verb):
    """As on the CPU: right for finite numbers, 0 and NaN beside and in the place of an infinite one."""
    x, weight = normal(5, 4, 1536), normal(6, 1536)
    x[0], x[1], x[2, 7], x[3, 9] = x[0] * 1e20, x[1] * 2e37, 3e38, torch.inf
    found = NORMS[verb](device, x, weight, 1e-6)
    np.testing.assert_allclose(found[:3], expected_norm(x[:3], weight, 1e-6), rtol=1e-6, atol=1e-42)
    with Pool(1) as pool:
        on_cpu = cpu_rms_norm(pool, x.numpy(), weight.numpy(), 1e-6)
    np.testing.assert_allclose(found, on_cpu, rtol=1e-6, atol=1e-42)
    assert found[3, 9].isnan() and (found[3].nan_to_num() == 0).all()


@pytest.mark.parametrize("verb", NORMS)
def test_rms_norm_eps_counts_for_tiny_rows(device, verb):
    x, weight = normal(3, 2, 64) * 1e-4, normal(4, 64)
    np.testing.assert_allclose(NORMS[verb](device, x, weight, 1e-5), expected_norm(x, weight, 1e-5), rtol=1e-6)
    assert (NORMS[verb](device, torch.zeros_like(x), weight, 1e-6) == 0).all()


@pytest.mark.parametrize("verb", NORMS)
def test_rms_norm_reads_strided_rows_and_writes_into_out(device, verb):
    wide, weight = normal(5, 4, 576), normal(6, 512)
    expected = expected_norm(wide[:, :512], weight, 1e-6)
    out = torch.full((4, 600), torch.nan)
    part = out[:, :512]
    assert NORMS[verb](device, wide[:, :512], weight, 1e-6, out=part) is part
    np.testing.assert_allclose(part, expected, rtol=1e-6)
    assert out[:, 512:].isnan().all()
    rows, rest = wide[:, :512], wide[:, 512:].clone()
    np.testing.assert_allclose(NORMS[verb](device, rows, weight, 1e-6, out=rows), expected, rtol=1e-6)
    assert (wide[:, 512:] == rest).all()


@pytest.mark.parametrize(("tokens", "columns"), [(1, 2048), (5, 1001)])
@pytest.mark.parametrize("verb", NORMS)
def test_rms_norm_adds_first(device, verb, tokens, columns):
    x, y, weight = normal(7, tokens, columns), normal(8, tokens, columns + 5)[:, 5:], normal(9, columns)
    total = x + y
    result = NORMS[verb](device, x, weight, 1e-6, add=y)
    assert (x == total).all()
    assert (result == NORMS[verb](device, total, weight, 1e-6)).all()


@pytest.mark.parametrize(("tokens", "columns"), [(1, 7168), (4, 96), (5, 512), (0, 64)])
@pytest.mark.parametrize("verb", NORMS)
def test_rms_norm_arranges_what_it_returns_otherwise(device, verb, tokens, columns):
    x, y, weight = normal(10, tokens, columns), normal(11, tokens, columns), normal(12, columns)
    expected = NORMS[verb](device, x + y, weight, 1e-6)
    found = NORMS[verb](device, x, weight, 1e-6, add=y, arranged=True)
    assert torch.equal(found.natural, expected)
    again = arrange_twin(device, expected)
    assert found.shape == again.shape and torch.equal(found.values, again.values)
    assert (found.scale is None) == (again.scale is None) == (tokens <= 4)
    assert found.scale is None or torch.equal(found.scale, again.scale)
    np.testing.assert_allclose(found.sums, again.sums, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("verb", NORMS)
def test_rms_norm_refuses_what_does_not_fit(device, verb):
    x, weight = normal(7, 2, 8), normal(8, 8)
    for wrong in ((x, weight[:4]), (x[0], weight), (x.double(), weight), (normal(7, 2, 16)[:, ::2], weight)):
        with pytest.raises(ValueError, match="rms_norm"):
            NORMS[verb](device, *wrong, 1e-6)
    for add in (normal(8, 3, 8), normal(8, 2, 8).double(), normal(8, 2, 16)[:, ::2]):
        with pytest.raises(ValueError, match="rms_norm"):
            NORMS[verb](device, x, weight, 1e-6, add=add)
    with pytest.raises(ValueError, match="out has shape"):
        NORMS[verb](device, x, weight, 1e-6, out=torch.empty(1, 8))
    with pytest.raises(ValueError, match="8 columns"):
        NORMS[verb](device, x, weight, 1e-6, arranged=True)
    with pytest.raises(ValueError, match="the sum"):
        NORMS[verb](device, x, weight, 1e-6, add=x.clone(), out=x)


@pytest.mark.parametrize(("heads", "dimensions"), [(33, 64), (1, 64), (3, 2), (5, 6)])
@pytest.mark.parametrize("verb", ROPES)
def test_rope_turns_the_rope_part_of_queries_only(device, verb, heads, dimensions):
    q = normal(9, 3, heads, 16 + dimensions)
    before, (cos, sin) = q.clone(), angles(3, dimensions // 2)
    ROPES[verb](device, q[:, :, 16:], cos, sin)
    assert (q[:, :, :16] == before[:, :, :16]).all()
    expected = reference.rope(before[:, :, 16:].numpy(), cos.numpy(), sin.numpy())
    np.testing.assert_allclose(q[:, :, 16:], expected, atol=1e-6)
    assert (q[1:, :, 16:] - before[1:, :, 16:]).abs().max() > 0.1


@pytest.mark.parametrize("verb", ROPES)
def test_rope_of_a_key_without_head_axis(device, verb):
    kv, (cos, sin) = normal(12, 4, 576), angles(4, 32)
    expected = reference.rope(kv[:, None, 512:].numpy(), cos.numpy(), sin.numpy())[:, 0]
    before = kv[:, :512].clone()
    ROPES[verb](device, kv[:, 512:], cos, sin)
    np.testing.assert_allclose(kv[:, 512:], expected, atol=1e-6)
    assert (kv[:, :512] == before).all()


@pytest.mark.parametrize("verb", ROPES)
def test_rope_of_no_tokens(device, verb):
    x, (cos, sin) = torch.empty(0, 2, 64), angles(0, 32)
    ROPES[verb](device, x, cos, sin)
    ROPES[verb](device, x[:, 0], cos, sin)


@pytest.mark.parametrize("verb", ROPES)
def test_rope_refuses_what_does_not_fit(device, verb):
    x, (cos, sin) = normal(13, 4, 2, 8), angles(4, 4)
    for wrong in (
        (x, cos[:3], sin),
        (x[:, :, :7], cos, sin),
        (x, cos, sin[:, :2]),
        (x[0, 0], cos, sin),
        (x[:, :, ::2], cos[:, :2], sin[:, :2]),
    ):
        with pytest.raises(ValueError, match="rope"):
            ROPES[verb](device, *wrong)
    with pytest.raises(ValueError, match="float32"):
        ROPES[verb](device, x.double(), cos, sin)
