"""One contract: a verb that cpu_kernels and gpu_kernels share means the same on the CPU, in the twins and in the GPU's
kernels (in Triton's interpreter), against one float64 reference of the numbers that all three are given.

The bounds are those of the precisions: a CPU rounds activations to 8 bits before quantized products, a GPU to float16
for more than four tokens.
"""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import cpu_kernels
import gpu_kernels
from gpu_kernels import twins
from hetero import kernel_references as reference
from tests.kernel_inputs import angles, normal
from tests.random_weights import random_weights, values_of

pytestmark = pytest.mark.interpreter

FLOAT, HALF, BYTE = 3e-6, 2e-3, 2e-2  # of the largest value: float32 sums, float16 activations, 8-bit activations


class Side:
    """Verbs of one side, on numpy arrays whatever it computes with; `where` is their first argument."""

    def __init__(self, name: str, verbs: Any, where: Any):
        self.name, self.verbs, self.where = name, verbs, where
        self.layers: dict[str, Any] = {}  # of `cached`

    def array(self, x: np.ndarray) -> Any:
        return x

    def matrix(self, raw: np.ndarray, type: str, columns: int) -> Any:
        return cpu_kernels.Matrix(raw, type, columns)

    def network(self, matrices: list[Any], experts: int | None) -> Any:
        return tuple(matrices)

    def layer(self, kv: str, pages: int, width: int) -> Any:
        return cpu_kernels.cache_layer(pages, kv, width)

    def blocks(self, layer: Any) -> np.ndarray:
        return layer

    def expanded(self, w: Any) -> Any:
        """As `mla_expanded` takes it."""
        return cpu_kernels.dequantize(self.where, w)

    def __call__(self, verb: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.verbs, verb)(self.where, *arguments, **options)


class GpuSide(Side):
    def array(self, x):
        return torch.from_numpy(x)

    def matrix(self, raw, type, columns):
        return gpu_kernels.Matrix.from_gguf(self.where, raw, type, columns)

    def network(self, matrices, experts):
        return (
            gpu_kernels.Gated(*matrices)
            if experts is None
            else gpu_kernels.Resident(*matrices, range(experts), experts)
        )

    def layer(self, kv, pages, width):
        return self("cache_layer", pages, kv, width)

    def blocks(self, layer):
        return layer.blocks()

    def expanded(self, w):
        return w


def floats(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


@pytest.fixture(scope="module", params=["cpu", "twins", "interpreter"])
def side(request):
    if request.param != "cpu":
        verbs: ModuleType = gpu_kernels if request.param == "interpreter" else twins
        yield GpuSide(request.param, verbs, gpu_kernels.Device.interpreter())
        return
    with cpu_kernels.Pool(1) as pool:
        yield Side("cpu", cpu_kernels, pool)


def weights(side: Side, type: str, *shape: int, seed: int = 0) -> tuple[Any, np.ndarray]:
    """A matrix of the side, or a stack of them, and its values in float64."""
    raw = random_weights(type, shape, np.random.default_rng(seed), scale=0.0005)  # values about 0.1
    return side.matrix(raw, type, shape[-1]), floats(values_of(raw, type))


def close(found: Any, expected: np.ndarray, bound: float) -> None:
    found = floats(found)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


def bound(side: Side, tokens: int) -> float:
    """Of a product with quantized weights."""
    return BYTE if side.name == "cpu" else FLOAT if tokens <= 4 else HALF


def check_linear(side: Side) -> None:
    (a, a_values), (b, b_values) = weights(side, "Q4_K", 40, 256), weights(side, "Q6_K", 24, 256, seed=1)
    both = np.concatenate([a_values, b_values])
    for tokens in (1, 6):
        wide = normal(tokens, tokens, 320)
        x = side.array(wide)[:, :256]  # rows may be strided
        close(side("linear", a, x), floats(wide[:, :256]) @ a_values.T, bound(side, tokens))
        close(side("linear", (a, b), x), floats(wide[:, :256]) @ both.T, bound(side, tokens))


def check_linear_heads(side: Side) -> None:
    w, values = weights(side, "Q8_0", 3, 48, 64)
    for tokens in (1, 6):
        x = normal(tokens, tokens, 3, 96)
        found = side("linear_heads", w, side.array(x)[:, :, :64])
        close(found, np.einsum("thc,hrc->thr", floats(x[:, :, :64]), values), bound(side, tokens))


def check_linear_heads_transposed(side: Side) -> None:
    w, values = weights(side, "Q8_0", 3, 48, 64)
    for tokens in (1, 6):
        x = normal(tokens, tokens, 3, 96)
        found = side("linear_heads_transposed", w, side.array(x)[:, :, :48])
        expected = np.einsum("thr,hrc->thc", floats(x[:, :, :48]), values)
        close(found, expected, bound(side, 6))  # float16 for few tokens too


def check_dequantize(side: Side) -> None:
    for type in ("Q4_K", "Q8_0"):
        w, values = weights(side, type, 32, 256)
        close(side("dequantize", w), values, 0 if side.name == "cpu" else 2**-11)


def check_ffn(side: Side) -> None:
    matrices, values = zip(*(weights(side, "Q8_0", *shape) for shape in [(96, 64)] * 2 + [(64, 96)]), strict=True)
    for tokens in (1, 6):
        x = normal(tokens, tokens, 64)
        found = side("ffn", side.network(list(matrices), None), side.array(x))
        close(found, reference.ffn(values, ["F32"] * 3, x), 2 * bound(side, tokens))


def check_routed_experts(side: Side) -> None:
    experts, rng = 4, np.random.default_rng(9)
    matrices, values = zip(*(weights(side, "Q8_0", experts, 64, 64, seed=seed) for seed in range(3)), strict=True)
    network = side.network(list(matrices), experts)
    for tokens in (1, 9):
        x, shares = normal(tokens, tokens, 64), rng.random((tokens, 2), np.float32)
        ids = np.array([rng.permutation(experts)[:2] for _ in range(tokens)], np.int32)
        found = side("routed_experts", network, *(side.array(array) for array in (x, ids, shares)))
        each = np.stack([reference.ffn([part[e] for part in values], ["F32"] * 3, x) for e in range(experts)])
        chosen = each[ids, np.arange(tokens)[:, None]]  # [T, k, K]
        close(found, (shares[:, :, None] * chosen).sum(axis=1), 2 * bound(side, tokens))


def check_rms_norm(side: Side) -> None:
    x, rest, weight = normal(1, 3, 2048), normal(2, 3, 2048), normal(3, 2048)
    total = side.array(x.copy())
    found = side("rms_norm", total, side.array(weight), 1e-6, add=side.array(rest))
    np.testing.assert_array_equal(np.asarray(total), x + rest)
    close(found, reference.rms_norm(x + rest, weight, 1e-6), FLOAT)


def check_rope(side: Side) -> None:
    q, (cos, sin) = normal(4, 3, 5, 96), angles(3, 32)
    turned = side.array(q.copy())
    side("rope", turned[:, :, 32:], side.array(cos), side.array(sin))
    close(turned[:, :, 32:], reference.rope(q[:, :, 32:], cos, sin), FLOAT)
    np.testing.assert_array_equal(np.asarray(turned[:, :, :32]), q[:, :, :32])


def check_route(side: Side) -> None:
    rng = np.random.default_rng(6)
    logits, bias = rng.normal(0, 2, (5, 160)).astype(np.float32), rng.normal(0, 0.2, 160).astype(np.float32)
    rule = {"used": 6, "groups": 8, "groups_used": 3, "normalize": True, "scale": 2.5}
    for score, gating in (("top2", "sigmoid"), ("max", "softmax")):
        kind = rule | {"group_score": score, "gating": gating}
        ids, shares = side("route", side.array(logits), side.array(bias), **kind)
        expected = reference.route(logits, bias, **kind)
        np.testing.assert_array_equal(np.asarray(ids), expected[0])
        close(shares, expected[1], FLOAT)


LATENT, ROPE, NOPE, VALUE, HEADS, TOKENS = 128, 32, 64, 64, 4, 100
TABLE = np.array([[2, 0, 1]], np.int32)  # pages not in order
KV = {"f16": 2**-11, "q8_0": 1 / 250}


def cached(side: Side, kv: str) -> Any:
    """A layer with TOKENS tokens of one sequence, written by the side itself, once."""
    if kv in side.layers:
        return side.layers[kv]
    both, norm, (cos, sin) = normal(7, TOKENS, 32 + LATENT + ROPE), normal(8, LATENT), angles(TOKENS, ROPE // 2)
    slots = (TABLE[0, :, None].astype(np.int64) * 64 + np.arange(64)).reshape(-1)[:TOKENS].copy()
    layer, arrays = (
        side.layer(kv, 3, LATENT + ROPE),
        [side.array(array) for array in (both.copy(), norm, cos, sin, slots)],
    )
    side("write_latent", arrays[0], 32, arrays[1], 1e-6, *arrays[2:4], layer, arrays[4])
    latent = reference.rms_norm(both[:, 32 : 32 + LATENT], norm, 1e-6)
    key = reference.rope(both[:, None, 32 + LATENT :], cos, sin)[:, 0]
    close(reference.cache_values(side.blocks(layer))[slots], np.concatenate([latent, key], axis=1), KV[kv])
    side.layers[kv] = layer
    return layer


def check_write_latent(side: Side) -> None:
    for kv in KV:
        cached(side, kv)


def check_mla_absorbed(side: Side) -> None:
    q, positions, sequence = normal(9, 2, HEADS, LATENT + ROPE), np.array([64, 99], np.int32), np.zeros(2, np.int32)
    for kv in KV:
        layer = cached(side, kv)
        parts = np.ascontiguousarray(q[:, :, :LATENT]), q[:, :, LATENT:]
        arrays = [side.array(array) for array in (TABLE, sequence, positions)]
        found = side("mla_absorbed", *map(side.array, parts), layer, *arrays, 0.06)
        blocks = side.blocks(layer)
        expected = reference.mla_absorbed(q, blocks, TABLE, sequence, positions, 0.06, LATENT)
        close(found, expected, FLOAT if side.name == "cpu" else HALF)


def check_mla_expanded(side: Side) -> None:
    layer, positions = cached(side, "f16"), np.arange(90, 100, dtype=np.int32)
    q = normal(10, len(positions), HEADS, NOPE + ROPE)
    (k_b, k_values), (v_b, v_values) = (weights(side, "Q8_0", HEADS, NOPE, LATENT, seed=seed) for seed in (1, 2))
    arguments = layer, side.array(TABLE[0, :2].copy()), side.array(positions), 0.06
    found = side("mla_expanded", side.array(q), side.expanded(k_b), side.expanded(v_b), *arguments)
    expected = reference.mla_expanded(q, k_values, v_values, side.blocks(layer), TABLE[0, :2], positions, 0.06)
    close(found, expected, FLOAT if side.name == "cpu" else HALF)


CHECKS = {
    "dequantize": check_dequantize,
    "ffn": check_ffn,
    "linear": check_linear,
    "linear_heads": check_linear_heads,
    "linear_heads_transposed": check_linear_heads_transposed,
    "mla_absorbed": check_mla_absorbed,
    "mla_expanded": check_mla_expanded,
    "rms_norm": check_rms_norm,
    "rope": check_rope,
    "route": check_route,
    "routed_experts": check_routed_experts,
    "write_latent": check_write_latent,
}
OTHERS = {"Matrix", "cache_layer"}  # classes; and what check_write_latent makes its layers with


@pytest.mark.parametrize("verb", CHECKS)
def test_means_the_same(side, verb):
    CHECKS[verb](side)


def test_every_shared_verb_has_a_check():
    assert set(cpu_kernels.__all__) & set(gpu_kernels.__all__) == set(CHECKS) | OTHERS
