"""No kernel touches what lies behind its arrays and working memory, or uses working memory that it has not written.

Every array ends where a forbidden page begins; working memory is full of NaN before each call, and as short as it may
be. The reference for each token is its own call, alone; that is compared with float64 here, once, and elsewhere.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from cpu_kernels import (
    SUPPORTED,
    Matrix,
    Pool,
    dequantize,
    embed,
    ffn,
    interleave,
    linear,
    linear_heads,
    linear_heads_transposed,
    routed_experts,
)
from cpu_kernels.matrix import load_format, row_groups
from tests.random_weights import as_multiplied, random_weights, values_of
from tests.walled_memory import WalledScratch, before_a_forbidden_page

TYPES = sorted(SUPPORTED)
TOKENS = [*range(1, 20), 31, 33]  # every width of a tile, every number of missing columns


@pytest.fixture(scope="module", params=[1, 4])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Walled: with one thread behind its share, with several behind the last one's."""
    with Pool(request.param) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_scratch", WalledScratch())
        yield pool


@pytest.fixture(scope="module")
def plain() -> Iterator[Pool]:
    with Pool(1) as pool:
        yield pool


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(9)


def columns_of(type: str) -> int:
    return {1: 83, 32: 288, 256: 768}[load_format(type).FORMAT.VALUES]


def walled(matrix: Matrix, pool: Pool, layout: str) -> Matrix:
    """The same weights, in this layout, before a forbidden page."""
    if layout == "gguf":
        return Matrix(before_a_forbidden_page(matrix.data), matrix.type, matrix.columns)
    shape = matrix.count, row_groups(matrix.rows), 16 * matrix.row_bytes
    return interleave(pool, matrix, before_a_forbidden_page(np.full(shape, 0xFF, np.uint8)))


def nothing(*shape: int) -> np.ndarray:
    return before_a_forbidden_page(np.full(shape, np.nan, np.float32))


@pytest.mark.parametrize("layout", ["gguf", "x16"])
@pytest.mark.parametrize("type", TYPES)
def test_products(pool: Pool, plain: Pool, rng: np.random.Generator, type: str, layout: str) -> None:
    columns = columns_of(type)
    for rows in (37, 16, 1):
        matrix = Matrix(random_weights(type, (rows, columns), rng), type, columns)
        x = rng.standard_normal((max(TOKENS), columns), np.float32)
        alone = np.concatenate([linear(plain, matrix, row[None]) for row in x])
        expected = as_multiplied(x, matrix) @ values_of(matrix.data, type).astype(np.float64).T
        np.testing.assert_allclose(alone, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
        placed = walled(matrix, pool, layout)
        for tokens in TOKENS if rows == 37 else (1, 9):
            some = before_a_forbidden_page(x[:tokens])
            np.testing.assert_array_equal(linear(pool, placed, some, nothing(tokens, rows)), alone[:tokens])


@pytest.mark.parametrize("layout", ["gguf", "x16"])
@pytest.mark.parametrize("type", TYPES)
def test_values(pool: Pool, rng: np.random.Generator, type: str, layout: str) -> None:
    columns = columns_of(type)
    data = random_weights(type, (2, 37, columns), rng)
    matrix, expected = walled(Matrix(data, type, columns), pool, layout), values_of(data, type)
    np.testing.assert_array_equal(dequantize(pool, matrix), expected)
    np.testing.assert_array_equal(dequantize(pool, matrix, 1, slice(3, 36)), expected[1, 3:36])
    if layout == "gguf":
        for tokens in (1, 16, 17):
            ids = rng.integers(0, 37, tokens)
            np.testing.assert_array_equal(embed(pool, matrix, ids, nothing(tokens, columns)), expected[0, ids])


@pytest.mark.parametrize("layout", ["gguf", "x16"])
@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_K"])
def test_heads(pool: Pool, plain: Pool, rng: np.random.Generator, type: str, layout: str) -> None:
    columns = columns_of(type)
    matrix = Matrix(random_weights(type, (3, 21, columns), rng), type, columns)
    placed = walled(matrix, pool, layout)
    for tokens in (1, 9, 17):
        x = before_a_forbidden_page(rng.standard_normal((tokens, 3, columns), np.float32))
        expected = linear_heads(plain, matrix, x)
        np.testing.assert_array_equal(linear_heads(pool, placed, x, nothing(tokens, 3, 21)), expected)
        x = before_a_forbidden_page(rng.standard_normal((tokens, 3, 21), np.float32))
        expected = linear_heads_transposed(plain, matrix, x)
        np.testing.assert_array_equal(linear_heads_transposed(pool, placed, x, nothing(tokens, 3, columns)), expected)


# (gate, up, down, hidden values, columns): whole groups and blocks; neither.
NETWORKS = [("Q4_K", "Q4_K", "Q6_K", 256, 512), ("Q8_0", "IQ4_NL", "Q5_0", 96, 160), ("F16", "F32", "BF16", 21, 37)]
LAYOUTS = [("gguf",) * 3, ("x16",) * 3, ("x16", "gguf", "x16"), ("gguf", "x16", "gguf")]


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network[0])
def test_experts(
    pool: Pool, plain: Pool, rng: np.random.Generator, network: tuple[str, str, str, int, int], layouts: tuple[str, ...]
) -> None:
    """Of seven experts number 2 gets no token, number 5 every one."""
    types, (hidden, columns), experts = network[:3], network[3:], 7
    shapes = [(hidden, columns), (hidden, columns), (columns, hidden)]
    matrices = [Matrix(random_weights(t, (experts, *s), rng), t, s[1]) for t, s in zip(types, shapes, strict=True)]
    placed = [walled(matrix, pool, layout) for matrix, layout in zip(matrices, layouts, strict=True)]
    x = rng.standard_normal((1023, columns), np.float32)
    ids = np.stack([np.append(rng.choice([0, 1, 3, 4, 6], 2, replace=False), 5) for _ in x]).astype(np.int32)
    weights = rng.random(ids.shape, np.float32)
    checked = [0, 1, 16, 500, 1022]
    alone = [routed_experts(plain, matrices, *(a[t : t + 1] for a in (x, ids, weights)))[0] for t in checked]
    for tokens in (0, 1, 2, 17, 1023):
        some = [before_a_forbidden_page(a[:tokens]) for a in (x, ids, weights)]
        got = routed_experts(pool, placed, *some, out=nothing(tokens, columns))
        assert got.shape == (tokens, columns) and np.isfinite(got).all()
        for t, one in zip(checked, alone, strict=True):
            if t < tokens:
                np.testing.assert_array_equal(got[t], one)


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
def test_long_runs_of_rows(pool: Pool, plain: Pool, rng: np.random.Generator, layouts: tuple[str, ...]) -> None:
    """One token, and rows long and many enough for units of several blocks: more than working memory can hold
    of rows that are interleaved on the way."""
    shapes = [(1024, 2048), (1024, 2048), (2048, 1024)]
    matrices = [Matrix(random_weights("Q8_0", shape, rng), "Q8_0", shape[1]) for shape in shapes]
    placed = [walled(matrix, pool, layout) for matrix, layout in zip(matrices, layouts, strict=True)]
    x = rng.standard_normal((1, 2048), np.float32)
    np.testing.assert_array_equal(ffn(pool, placed, x, out=nothing(1, 2048)), ffn(plain, matrices, x))
