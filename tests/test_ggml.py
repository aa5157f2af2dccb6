"""ggml through its own libraries computes what the benchmarks say it does: products and routed experts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ggml import Experts, Ggml, Product, aligned
from tests.random_weights import random_weights, values_of

# Of the norm: activations rounded to 8 bits, to 16, or not at all.
ERRORS = {"F32": 1e-6, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 0.02, "Q4_K": 0.02, "Q6_K": 0.02, "IQ4_XS": 0.02}


@pytest.fixture(scope="module")
def ggml() -> Iterator[Ggml]:
    with Ggml(2) as backend:
        yield backend


def error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("type", sorted(ERRORS))
def test_product(ggml: Ggml, type: str) -> None:
    rng = np.random.default_rng(0)
    data = random_weights(type, (64, 512), rng)
    product = ggml.product(type, data, 512)
    assert product is not None
    for tokens in (1, 5, 1):
        x = rng.standard_normal((tokens, 512), np.float32)
        assert error(product.run(x), x.astype(np.float64) @ values_of(data, type).T) < ERRORS[type]
    product.close()


def test_rearranged_product(ggml: Ggml) -> None:
    rng = np.random.default_rng(0)
    data = random_weights("Q4_0", (64, 512), rng)
    x = rng.standard_normal((3, 512), np.float32)
    product = ggml.product("Q4_0", data, 512, repack=True)
    assert isinstance(product, Product) and ggml.rearranging
    want = product.run(x)
    assert error(want, x.astype(np.float64) @ values_of(data, "Q4_0").T) < 0.02
    data[:] = 0  # ggml has its own copy
    assert np.array_equal(product.run(x), want)
    product.close()
    assert ggml.product("F32", random_weights("F32", (64, 512), rng), 512, repack=True) is None


@pytest.mark.parametrize("down", ["Q4_K", "Q6_K"])
@pytest.mark.parametrize("repack", [False, True])
def test_experts(ggml: Ggml, down: str, repack: bool) -> None:
    rng = np.random.default_rng(1)
    count, tokens, used, width, hidden = 8, 5, 3, 256, 512
    shapes = [("Q4_K", hidden, width)] * 2 + [(down, width, hidden)]
    weights = [(type, random_weights(type, (count, rows, row), rng, 0.001), row) for type, rows, row in shapes]
    gate, up, dn = (values_of(data, type).astype(np.float64) for type, data, _ in weights)
    x = rng.standard_normal((tokens, width), np.float32)
    ids = rng.random((tokens, count)).argsort(axis=1)[:, :used].astype(np.int32)
    shares = rng.random((tokens, used), np.float32)
    want = np.zeros((tokens, width))
    for t in range(tokens):
        for expert, share in zip(ids[t], shares[t], strict=True):
            g = gate[expert] @ x[t]
            want[t] += share * (dn[expert] @ (g / (1 + np.exp(-g)) * (up[expert] @ x[t])))
    experts = ggml.experts(weights, repack=repack)
    del weights  # ggml's side keeps what it needs
    assert isinstance(experts, Experts)
    assert experts.rearranged == [repack, repack, repack and down == "Q4_K"]
    assert error(experts.run(x, ids, shares), want) < 0.05
    assert error(experts.run(x[:1], ids[:1], shares[:1]), want[:1]) < 0.05
    experts.close()


def test_wrong_size_is_refused(ggml: Ggml) -> None:
    with pytest.raises(ValueError, match="ggml counts"):
        ggml.product("Q4_K", aligned(64 * 143).reshape(64, 143), 256)


def test_there_is_one_ggml_beside_llama_cpp(ggml: Ggml) -> None:
    """A second copy of it would be bound to the first in part, and end the process."""
    pytest.importorskip("llama_cpp")
    maps = Path("/proc/self/maps").read_text().splitlines()
    for part in ("base", "cpu"):
        assert len({line.split()[4] for line in maps if f"/libggml-{part}.so" in line}) == 1
