"""Every weight format: exact dequantization, and products against float64."""

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from cpu_kernels import SUPPORTED, Matrix, Pool, dequantize, embed, interleave, linear, linear_heads_transposed
from cpu_kernels.matrix import load_format
from tests.random_weights import SCALES, as_multiplied, random_matrix, random_weights, values_of
from tests.walled_memory import before_a_forbidden_page

TYPES = sorted(SUPPORTED)
# Row lengths: one block; several with an odd number of 32s; for plain numbers also no multiple of anything.
COLUMNS = {1: 83, 32: 288, 256: 768}


@pytest.fixture(scope="module")
def pool():
    with Pool(2) as pool:
        yield pool


def columns_of(type: str) -> int:
    return COLUMNS[gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]][0]]


def test_every_type_of_the_issue_is_supported():
    assert {
        "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M",
    } == SUPPORTED  # fmt: skip


@pytest.mark.parametrize("type", TYPES)
def test_block_sizes_are_those_of_the_gguf_package(type):
    form = load_format(type)
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]
    assert sizes == (form.FORMAT.VALUES, form.FORMAT.BYTES)


@pytest.mark.parametrize("scale", [0.02, 1e-7, 2000.0])  # ordinary, subnormal in f16, huge
@pytest.mark.parametrize("type", TYPES)
def test_dequantize_is_bit_exact(pool, type, scale):
    rng = np.random.default_rng(1)
    data = random_weights(type, (3, 7, columns_of(type)), rng, scale)
    matrix = Matrix(data, type, columns_of(type))
    expected = values_of(data, type).view(np.uint32)
    np.testing.assert_array_equal(dequantize(pool, matrix).view(np.uint32), expected)
    np.testing.assert_array_equal(dequantize(pool, matrix, 2, slice(1, 5)).view(np.uint32), expected[2, 1:5])
    np.testing.assert_array_equal(embed(pool, matrix, [6, 0, 6]).view(np.uint32), expected[0, [6, 0, 6]])


@pytest.mark.parametrize("layout", ["gguf", "x16"])
@pytest.mark.parametrize("type", TYPES)
def test_products_match_float64(type, layout):
    rng = np.random.default_rng(2)
    matrix, weights = random_matrix(type, (37, columns_of(type)), rng)
    for threads in (1, 2):
        with Pool(threads) as pool:
            placed = interleave(pool, matrix) if layout == "x16" else matrix
            for tokens in (1, 2, 3, 4, 5, 17, 64):
                x = rng.standard_normal((tokens, columns_of(type)), np.float32)
                expected = as_multiplied(x, matrix) @ weights.T
                tolerance = 2e-6 * np.abs(expected).max()
                np.testing.assert_allclose(linear(pool, placed, x), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("type", TYPES)
def test_a_column_does_not_depend_on_the_others_or_on_the_layout(pool, type):
    rng = np.random.default_rng(7)
    matrix, _ = random_matrix(type, (37, columns_of(type)), rng)
    x = rng.standard_normal((19, columns_of(type)), np.float32)
    alone = np.concatenate([linear(pool, matrix, row[None]) for row in x])
    for same in (matrix, interleave(pool, matrix)):
        for tokens in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 19):
            np.testing.assert_array_equal(linear(pool, same, x[:tokens]), alone[:tokens])


@pytest.mark.parametrize("type", TYPES)
def test_interleaved_weights_are_the_same_values_in_as_many_bytes(pool, type):
    rng = np.random.default_rng(8)
    matrix = Matrix(random_weights(type, (3, 48, columns_of(type)), rng), type, columns_of(type))
    same = interleave(pool, matrix)
    assert same.data.nbytes == matrix.data.nbytes
    np.testing.assert_array_equal(dequantize(pool, same), dequantize(pool, matrix))
    np.testing.assert_array_equal(dequantize(pool, same, 1, slice(5, 40)), dequantize(pool, matrix, 1, slice(5, 40)))


@pytest.mark.parametrize("type", sorted(SCALES))
def test_extreme_codes_do_not_overflow(type):
    """Rows of one byte throughout and activations of one size: the largest sums that can occur."""
    columns, rng = columns_of(type), np.random.default_rng(3)
    extremes = np.array([0, 0x80, 0xFF, 0x7F, 0x0F, 0xF0], np.uint8)
    data = random_weights(type, (len(extremes), columns), rng)
    blocks = data.reshape(len(extremes), -1, load_format(type).FORMAT.BYTES)
    keep = [offset + byte for offset in SCALES[type] for byte in (0, 1)]
    blocks[:, :, np.setdiff1d(np.arange(blocks.shape[2]), keep)] = extremes[:, None, None]
    matrix, weights = Matrix(data, type, columns), values_of(data, type).astype(np.float64)
    x = np.where(rng.random((5, columns)) < 0.5, -1.0, 1.0).astype(np.float32)
    x[0] = 1.0
    with Pool(1) as pool:
        for part in (x, x[:1]):
            expected = part.astype(np.float64) @ weights.T
            tolerance = 2e-6 * np.abs(weights).sum(axis=1).max()
            np.testing.assert_allclose(linear(pool, matrix, part), expected, rtol=0, atol=tolerance)


def test_weights_may_be_read_only_strided_and_mapped(pool, tmp_path: Path):
    rng = np.random.default_rng(4)
    data = random_weights("Q4_K", (4, 9, 512), rng)
    path = tmp_path / "weights"
    path.write_bytes(np.pad(data, ((0, 0), (0, 3), (0, 5))).tobytes())
    mapped = np.memmap(path, np.uint8, "r", shape=(4, 12, data.shape[2] + 5))[::2, :9, : data.shape[2]]
    matrix = Matrix(mapped, "Q4_K", 512)
    assert (matrix.count, matrix.rows, matrix.columns) == (2, 9, 512)
    np.testing.assert_array_equal(dequantize(pool, matrix), values_of(data[::2], "Q4_K"))


@pytest.mark.parametrize("type", TYPES)
def test_nothing_is_read_past_the_last_row(pool, type):
    """The last tensor of a mapped file may end with the file's last page."""
    rng, columns = np.random.default_rng(6), columns_of(type)
    for rows in (1, 3):
        data = random_weights(type, (rows, columns), rng)
        matrix = Matrix(before_a_forbidden_page(data), type, columns)
        np.testing.assert_array_equal(dequantize(pool, matrix), values_of(data, type))
        for tokens in (1, 5):
            x = before_a_forbidden_page(rng.standard_normal((tokens, columns), np.float32))
            assert np.isfinite(linear(pool, matrix, x)).all()
        linear_heads_transposed(pool, Matrix(matrix.data[None], type, columns), np.ones((1, 1, rows), np.float32))


@pytest.mark.parametrize(
    ("shape", "type", "columns", "message"),
    [
        ((2, 54), "TQ1_0", 256, "no kernels for weights of type 'TQ1_0'"),
        ((2, 144), "Q4_K", 128, "rows of 128 values; Q4_K needs a multiple of 256"),
        ((2, 143), "Q4_K", 256, "weight rows of 143 bytes"),
        ((144,), "Q4_K", 256, "1 dimensions"),
    ],
)
def test_impossible_weights_are_refused(shape, type, columns, message):
    with pytest.raises(ValueError, match=message):
        Matrix(np.zeros(shape, np.uint8), type, columns)


def test_bytes_of_a_row_must_be_contiguous():
    with pytest.raises(ValueError, match="step 2"):
        Matrix(np.zeros((2, 288), np.uint8)[:, ::2], "Q4_K", 256)


def test_ids_outside_the_matrix_are_refused(pool):
    matrix = Matrix(np.zeros((2, 34), np.uint8), "Q8_0", 32)
    for ids in ([2], [-1], [[0]]):
        with pytest.raises(ValueError, match="rows 0 to 1 exist"):
            embed(pool, matrix, ids)
    assert embed(pool, matrix, []).shape == (0, 32)


LESSER_TYPES = ["Q8_0", "IQ4_XS", "Q4_K", "IQ1_M", "IQ2_XXS", "IQ3_S"]


@pytest.mark.soak
@pytest.mark.parametrize("cpu", ["x86-64", "haswell"])
def test_products_on_lesser_cpus(cpu, tmp_path):
    if os.uname().machine != "x86_64":
        pytest.skip("the CPU names are of x86-64")
    chosen = " or ".join(f"float64[{type}-" for type in LESSER_TYPES)
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": "", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", chosen, "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
