"""Products of heads on the GPU, numerics in Triton's interpreter: against float64 of gguf's weights."""

import numpy as np
import pytest
import torch

from gpu_kernels import heads
from gpu_kernels.arranged import arrange
from gpu_kernels.device import Device
from gpu_kernels.formats import FORMATS
from gpu_kernels.heads import (
    linear_heads,
    linear_heads_transposed,
    linear_heads_transposed_twin,
    linear_heads_twin,
)
from gpu_kernels.matrix import Matrix

from .deviation import worst
from .gpu_compile import Case
from .random_weights import random_weights, values_of

pytestmark = pytest.mark.interpreter

TILE = 1e-3  # of float64, relative
FULL = 1e-5
TYPES = [*FORMATS, "Q2_K"]  # the last has no kernel

_POINTERS = {"codes": "*i32", "scales": "*i32", "x": "*fp32", "y": "*fp32"}
CASES = [
    Case(
        "transposed key half of attn_kv_b, Q4_K",
        heads._transposed,
        _POINTERS | dict.fromkeys(("tokens", "rows", "token_stride", "head_stride"), "i32"),
        {"S": 16, "BN": 128, "BT": 16, "BS": 8, **FORMATS["Q4_K"].constants},
        stages=1,
        divisible=tuple(_POINTERS),
        registers=160,
        shared=24_576,
        contains={r"HMMA\.16816\.F32\b": 64, r"LDG\.E.*\.128": 4},
        lacks=("I2F", "F2I"),
    )
]


@pytest.fixture(scope="module")
def device() -> Device:
    return Device.interpreter()


def make(device: Device, type: str, shape: tuple[int, int, int]) -> tuple[Matrix, np.ndarray]:
    data = random_weights(type, shape, np.random.default_rng(0))
    return Matrix.from_gguf(device, data, type, shape[-1]), values_of(data, type).astype(np.float64)


def activations(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal(shape, np.float32))


def columns_of(type: str) -> int:
    return 96 if type in ("Q8_0", "Q5_0", "Q4_0", "F16", "BF16", "F32", "IQ4_NL") else 256


def forward(x: torch.Tensor, values: np.ndarray) -> np.ndarray:
    return np.einsum("thk,hnk->thn", x.numpy().astype(np.float64), values)


def backward(x: torch.Tensor, values: np.ndarray) -> np.ndarray:
    return np.einsum("thn,hnk->thk", x.numpy().astype(np.float64), values)


@pytest.mark.parametrize("type", TYPES)
def test_each_format_from_both_sides(device: Device, type: str) -> None:
    """Two heads, rows and columns that do not fill their tiles, x strided."""
    w, values = make(device, type, (2, 24, columns_of(type)))
    x = activations(3, 2, w.columns + 8)[:, :, : w.columns]
    assert worst(linear_heads(device, w, x).numpy(), forward(x, values)) < TILE
    assert worst(linear_heads_twin(device, w, x).numpy(), forward(x, values)) < FULL
    y = activations(3, 2, 24 + 4)[:, :, :24]
    assert worst(linear_heads_transposed(device, w, y).numpy(), backward(y, values)) < TILE
    assert worst(linear_heads_transposed_twin(device, w, y).numpy(), backward(y, values)) < FULL


@pytest.mark.parametrize("tokens", [1, 17, 21])
def test_any_number_of_tokens(device: Device, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "DENSE_TOKENS", 21)
    monkeypatch.setattr(heads, "SCRATCH", 2 * 96 * 3 * 10)  # slabs of ten rows, and a rest
    w, values = make(device, "Q8_0", (3, 24, 96))
    x, y = activations(tokens, 3, 96), activations(tokens, 3, 24)
    out = torch.empty(tokens, 3, 24)
    assert linear_heads(device, w, x, out) is out
    assert worst(out.numpy(), forward(x, values)) < TILE
    out = torch.empty(tokens, 3, 96)
    assert linear_heads_transposed(device, w, y, out) is out
    assert worst(out.numpy(), backward(y, values)) < TILE


def test_arranged_activations(device: Device) -> None:
    w, values = make(device, "Q8_0", (2, 16, 64))
    for tokens in (2, 6):
        x = activations(tokens, 2, 64)
        assert worst(linear_heads(device, w, arrange(device, x)).numpy(), forward(x, values)) < TILE


@pytest.mark.parametrize("tokens", [4, 8])
def test_rows_of_any_magnitude(device: Device, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a head that float16 cannot hold, one that it would flush to zero, and zeros."""
    monkeypatch.setattr(heads, "DENSE_TOKENS", 8)
    w, values = make(device, "Q8_0", (2, 32, 64))
    for verb, reference, width in ((linear_heads, forward, 64), (linear_heads_transposed, backward, 32)):
        x = activations(tokens, 2, width)
        x[0, 0] *= 1e9
        x[0, 1] *= 1e-12
        x[1, 0] = 0
        got, expected = verb(device, w, x).numpy(), reference(x, values)
        for row in ((0, 0), (0, 1), (1, 1)):
            assert worst(got[row], expected[row]) < TILE
        assert not got[1, 0].any()


def test_more_rows_than_the_kernel_holds(device: Device) -> None:
    w, values = make(device, "Q8_0", (1, heads.MOST_ROWS + 8, 32))
    y = activations(2, 1, w.rows)
    assert worst(linear_heads_transposed(device, w, y).numpy(), backward(y, values)) < TILE


def test_what_does_not_fit_is_refused(device: Device) -> None:
    w, _ = make(device, "Q8_0", (2, 8, 64))
    with pytest.raises(ValueError, match=r"x is torch.float32\[3, 2, 8\].*needed is float32\[3, 2, 64\]"):
        linear_heads(device, w, activations(3, 2, 8))
    with pytest.raises(ValueError, match=r"needed is float32\[3, 2, 8\]"):
        linear_heads_transposed(device, w, activations(3, 2, 64))
    with pytest.raises(ValueError, match=r"needed is float32\[3, 2, 64\]"):
        linear_heads(device, w, activations(3, 1, 64))
    with pytest.raises(ValueError, match=r"out is torch.float32\[2, 3, 8\]; needed is a contiguous float32\[3, 2, 8\]"):
        linear_heads(device, w, activations(3, 2, 64), torch.empty(2, 3, 8))
