"""Products with 1 to 4 vectors, and arrangement, by the kernels themselves in Triton's interpreter."""

import numpy as np
import pytest
import torch

from gpu_kernels import Device, Matrix, arrange, twins
from gpu_kernels.arranged import store_arranged
from gpu_kernels.formats import FORMATS
from gpu_kernels.jit import jit, tl
from gpu_kernels.matvec import matvec, matvec_twin
from tests.random_weights import random_weights, values_of

pytestmark = pytest.mark.interpreter
TYPES = sorted(FORMATS)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Of one multiprocessor, to be kept busy by one program: the interpreter wants few and fat ones."""
    monkeypatch.setattr("gpu_kernels.matvec.PROGRAMS", 1)
    device = Device.interpreter()
    device.sms = 1
    return device


def vectors(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, np.float32))


def close(y: torch.Tensor, weights: np.ndarray, x: torch.Tensor, limit: float = 1e-5) -> None:
    """y = x times weights transposed, within `limit` of the largest value: weights [N, K], x [T, K]."""
    expected = x.double().numpy() @ weights.astype(np.float64).T
    assert y.shape == expected.shape and y.dtype == torch.float32
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=limit * np.abs(expected).max())


def check(device: Device, type: str, tokens: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(1)
    data, x = random_weights(type, (rows, columns), rng), vectors(rng, tokens, columns)
    matrix = Matrix.from_gguf(device, data, type, columns)
    close(matvec(device, matrix, arrange(device, x)), values_of(data, type), x)
    close(matvec_twin(device, matrix, twins.arrange(device, x)), values_of(data, type), x)


@pytest.mark.parametrize("type", TYPES)
def test_products_of_every_type(device: Device, type: str) -> None:
    """Two tiles that overlap; threads beyond the end of the row."""
    check(device, type, 1, 21, 768)


@pytest.mark.parametrize("tokens", [2, 3, 4])
@pytest.mark.parametrize("type", ["Q4_K", "Q6_K"])
def test_products_of_several_vectors(device: Device, type: str, tokens: int) -> None:
    check(device, type, tokens, 9, 256)


@pytest.mark.soak
@pytest.mark.parametrize("sms", [1, 8, 32])
@pytest.mark.parametrize(
    ("tokens", "rows", "columns"), [(1, 37, 512), (2, 5, 256), (3, 130, 768), (4, 18, 1792), (1, 3, 2304), (2, 1, 7168)]
)
@pytest.mark.parametrize("type", TYPES)
def test_products_of_every_shape(
    device: Device, monkeypatch: pytest.MonkeyPatch, type: str, tokens: int, rows: int, columns: int, sms: int
) -> None:
    monkeypatch.setattr(device, "sms", sms)
    check(device, type, tokens, rows, columns)


@pytest.mark.parametrize(("rows", "columns", "sms"), [(20, 1792, 1), (5, 2048, 4)])
def test_long_rows(device: Device, rows: int, columns: int, sms: int) -> None:
    """Several steps along a row with nothing masked, as in large matrices; a row divided among all threads."""
    device.sms = sms
    rng = np.random.default_rng(2)
    data, x = random_weights("Q4_0", (rows, columns), rng), vectors(rng, 1, columns)
    matrix, arranged = Matrix.from_gguf(device, data, "Q4_0", columns), arrange(device, x)
    made = matvec(device, matrix, arranged)
    close(made, values_of(data, "Q4_0"), x)
    assert torch.equal(made, matvec(device, matrix, arranged))


@pytest.mark.parametrize("type", ["Q5_0", "Q6_K"])
def test_several_matrices_have_vectors_of_their_own(device: Device, type: str) -> None:
    rng = np.random.default_rng(3)
    data, x = random_weights(type, (3, 11, 256), rng), vectors(rng, 2, 3, 256)
    matrix = Matrix.from_gguf(device, data, type, 256)
    wide = torch.full((2, 50), 7.0)
    out = wide[:, 9:42].view(2, 3, 11)
    assert matvec(device, matrix, arrange(device, x), out) is out
    for number in range(3):
        close(out[:, number], values_of(data, type)[number], x[:, number])
    assert (wide[:, :9] == 7).all() and (wide[:, 42:] == 7).all()
    torch.testing.assert_close(matvec_twin(device, matrix, arrange(device, x)), out.contiguous())


@pytest.mark.parametrize("type", ["Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS"])
def test_zero_rows_and_extreme_scales(device: Device, type: str) -> None:
    rng = np.random.default_rng(4)
    for scale in (1e-7, 1e4):
        data = random_weights(type, (9, 256), rng, scale)
        data[4] = 0
        x = vectors(rng, 1, 256)
        made = matvec(device, Matrix.from_gguf(device, data, type, 256), arrange(device, x))
        close(made, values_of(data, type), x)
        assert made[0, 4] == 0


@pytest.mark.parametrize(("type", "place"), [("Q4_K", 0), ("Q4_K", 2), ("Q6_K", 208), ("Q8_0", 0), ("IQ4_XS", 0)])
def test_infinite_and_nan_scales_spoil_their_row_only(device: Device, type: str, place: int) -> None:
    rng = np.random.default_rng(5)
    data, x = random_weights(type, (9, 256), rng), vectors(rng, 1, 256)
    for row, pattern in ((2, 0x7C00), (3, 0xFC00), (8, 0x7E00)):
        data[row, place : place + 2] = np.array([pattern], np.uint16).view(np.uint8)
    matrix = Matrix.from_gguf(device, data, type, 256)
    with np.errstate(all="ignore"):
        made = matvec(device, matrix, arrange(device, x))[0]
    twin = matvec_twin(device, matrix, arrange(device, x))[0]
    assert torch.equal(made.isfinite(), twin.isfinite()) and made.isfinite().tolist() == [
        n not in (2, 3, 8) for n in range(9)
    ]
    torch.testing.assert_close(made[made.isfinite()], twin[made.isfinite()], rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused(device: Device) -> None:
    rng = np.random.default_rng(6)
    matrix = Matrix.from_gguf(device, random_weights("Q4_K", (4, 256), rng), "Q4_K", 256)
    x = vectors(rng, 2, 256)
    for wrong, message in [
        (arrange(device, vectors(rng, 5, 256)), r"float16 \[5, 256\]; needed is float32"),
        (arrange(device, vectors(rng, 5, 256), half=False), "5 vectors; 1 to 4"),
        (arrange(device, vectors(rng, 2, 512)), r"\[2, 512\]; needed is float32 \[2, 256\]"),
        (arrange(device, vectors(rng, 2, 3, 256)), r"\[2, 3, 256\]; needed"),
    ]:
        with pytest.raises(ValueError, match=message):
            matvec(device, matrix, wrong)
    for out in (torch.empty(2, 5), torch.empty(2, 4, dtype=torch.float64), torch.empty(4, 2).T):
        with pytest.raises(ValueError, match=r"needed is float32 \[2, 4\]"):
            matvec(device, matrix, arrange(device, x), out)
    with pytest.raises(ValueError, match="K a multiple of 32"):
        arrange(device, vectors(rng, 2, 100))
    raw = Matrix.from_gguf(device, random_weights("Q2_K", (4, 256), rng), "Q2_K", 256)
    with pytest.raises(ValueError, match="kept as in the file"):
        matvec(device, raw, arrange(device, x))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("columns", [96, 2560])
def test_arrangement_equals_its_twin(device: Device, columns: int, half: bool) -> None:
    rng = np.random.default_rng(7)
    wide = vectors(rng, 6, columns + 3) * torch.logspace(-30, 30, 6)[:, None]
    wide[2], wide[3, 1], wide[4, 2], wide[4, 3], wide[5, :5] = 0, torch.inf, torch.nan, 3e38, 1e-45
    for x in (wide[:, 3:], wide[:, :columns].reshape(2, 3, columns)):
        made, twin = arrange(device, x, half), twins.arrange(device, x, half)
        assert made.shape == twin.shape and made.values.dtype == (torch.float16 if half else torch.float32)
        torch.testing.assert_close(made.values, twin.values, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(made.sums, twin.sums, rtol=1e-4, atol=1e-3, equal_nan=True)
        if half:
            assert made.scale is not None and twin.scale is not None and torch.equal(made.scale, twin.scale)


@jit
def _producer(x, values, sums, K: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tile = tl.load(x + tl.program_id(0) * K + column, mask=column < K, other=0.0)
    store_arranged(values, sums, tl.program_id(0), tile, column, column < K, K // 32)


def test_producers_store_what_arrange_would(device: Device) -> None:
    x = vectors(np.random.default_rng(8), 3, 352)
    twin = twins.arrange(device, x)
    values, sums = torch.empty_like(twin.values), torch.empty_like(twin.sums)
    device.launch(_producer, (3, 2), x, values, sums, K=352, BLOCK=256)
    assert torch.equal(values, twin.values)
    torch.testing.assert_close(sums, twin.sums, rtol=1e-5, atol=1e-5)
