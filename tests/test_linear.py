"""The linear verbs against float64: heads, transposed heads, feed-forward networks; what they refuse."""

import numpy as np
import pytest

from cpu_kernels import Matrix, Pool, ffn, linear, linear_heads, linear_heads_transposed, routed_experts
from tests.random_weights import as_multiplied, random_matrix, random_weights

TOLERANCE = 3e-6  # of the largest result: float32 sums of a few hundred products


@pytest.fixture(scope="module", params=[1, 2, 3])
def pool(request):
    with Pool(request.param) as pool:
        yield pool


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(initial=1e-30))


@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("type", ["Q4_K", "F32"])
def test_linear_into_given_memory(pool, rng, type, tokens):
    matrix, weights = random_matrix(type, (1000, 256), rng)  # more rows than one unit of work has
    x, out = rng.standard_normal((tokens, 256), np.float32), np.full((tokens, 1000), np.nan, np.float32)
    assert linear(pool, matrix, x, out) is out
    assert_close(out, as_multiplied(x, matrix) @ weights.T)


def test_rows_of_x_may_be_apart(pool, rng):
    matrix, weights = random_matrix("Q8_0", (5, 64), rng)
    x = rng.standard_normal((6, 2, 80), np.float32)[:, 1, 8:72]
    assert_close(linear(pool, matrix, x), as_multiplied(x, matrix) @ weights.T)


def test_zeros_and_large_and_small_activations(pool, rng):
    matrix, weights = random_matrix("Q6_K", (5, 512), rng)
    x = np.zeros((4, 512), np.float32)
    x[1, 7], x[2, :64], x[3] = 1e-30, 3e30, rng.standard_normal(512) * 10.0 ** rng.integers(-20, 20, 512)
    for part in (x, x[:1], x[1:2], x[2:3], x[3:]):
        for got, expected in zip(linear(pool, matrix, part), as_multiplied(part, matrix) @ weights.T, strict=True):
            assert_close(got, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("type", ["Q5_0", "Q4_K", "F16"])
def test_a_bad_activation_shows_in_the_result(pool, rng, type, bad):
    matrix, _ = random_matrix(type, (3, 256), rng)
    for tokens in (1, 6):
        x = rng.standard_normal((tokens, 256), np.float32)
        x[-1, 100] = bad
        out = linear(pool, matrix, x)
        assert np.isfinite(out[:-1]).all()
        assert not np.isfinite(out[-1]).any()


def test_results_do_not_depend_on_the_number_of_threads(rng):
    matrices = [random_matrix(type, shape, rng)[0] for type, shape in (("Q4_K", (4, 96, 256)), ("Q4_K", (4, 96, 256)))]
    down = random_matrix("Q5_0", (4, 256, 96), rng)[0]
    x = rng.standard_normal((9, 256), np.float32)
    ids = np.array([rng.permutation(4)[:3] for _ in x], np.int32)
    weights = rng.random(ids.shape, np.float32)
    outcomes = []
    for threads in (1, 2, 4):
        with Pool(threads) as pool:
            outcomes += [routed_experts(pool, (*matrices, down), part, ids[: len(part)], weights[: len(part)]).tobytes()
                         for part in (x, x[:1], x)]  # fmt: skip
    assert outcomes[0::3] == [outcomes[0]] * 3 == outcomes[2::3]
    assert outcomes[1::3] == [outcomes[1]] * 3


@pytest.mark.parametrize("tokens", [1, 3, 33])
@pytest.mark.parametrize("type", ["Q8_0", "Q5_0", "F16", "F32"])
def test_heads(pool, rng, type, tokens):
    matrix, weights = random_matrix(type, (5, 24, 128), rng)
    x = rng.standard_normal((tokens, 7, 128), np.float32)[:, 1:6]
    assert_close(linear_heads(pool, matrix, x), np.einsum("thc,hrc->thr", as_multiplied(x, matrix), weights))


@pytest.mark.parametrize("tokens", [1, 3, 33])
@pytest.mark.parametrize("type", ["Q8_0", "Q4_K", "F16", "F32"])
def test_transposed_heads(pool, rng, type, tokens):
    matrix, weights = random_matrix(type, (5, 24, 256), rng)
    x = rng.standard_normal((tokens, 5, 40), np.float32)[:, :, 8:32]
    assert_close(linear_heads_transposed(pool, matrix, x), np.einsum("thr,hrc->thc", x.astype(np.float64), weights))


def test_transposed_heads_of_part_of_a_matrix(pool, rng):
    """An unsplit attn_kv_b: 16 key rows, then 8 value rows of each head."""
    data = random_weights("Q8_0", (3, 24, 64), rng)
    keys, whole = Matrix(data[:, :16], "Q8_0", 64), random_matrix("Q8_0", (1, 64), rng)[0]
    assert (keys.count, keys.rows, whole.rows) == (3, 16, 1)
    x = rng.standard_normal((2, 3, 16), np.float32)
    weights = np.stack([Matrix(np.ascontiguousarray(part), "Q8_0", 64).data for part in data[:, :16]])
    again = linear_heads_transposed(pool, Matrix(weights, "Q8_0", 64), x)
    np.testing.assert_array_equal(linear_heads_transposed(pool, keys, x), again)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(np.minimum(-x, 700)))


def expected_experts(x, ids, weights, gate, up, down):
    """float64, except that the hidden values are rounded to float32 before they become 8-bit codes."""
    out = np.zeros(x.shape)
    for t, j in np.ndindex(ids.shape):
        (g, wg), (u, wu), (d, wd) = ((matrix, values[ids[t, j]]) for matrix, values in (gate, up, down))
        hidden = silu(as_multiplied(x[t], g) @ wg.T) * (as_multiplied(x[t], u) @ wu.T)
        out[t] += weights[t, j] * (as_multiplied(hidden.astype(np.float32), d) @ wd.T)
    return out


@pytest.mark.parametrize("types", [("Q4_K", "Q4_K", "Q6_K"), ("F32", "F32", "F32"), ("Q8_0", "F16", "Q5_0")])
@pytest.mark.parametrize("tokens", [1, 2, 3, 30])
def test_routed_experts(pool, rng, types, tokens):
    experts, hidden, columns = 6, 256, 512
    gate, up = (random_matrix(type, (experts, hidden, columns), rng) for type in types[:2])
    down = random_matrix(types[2], (experts, columns, hidden), rng)
    x = rng.standard_normal((tokens, columns), np.float32)
    ids = np.array([rng.permutation(experts)[:3] for _ in x], np.int32)
    weights = rng.random(ids.shape, np.float32)
    got = routed_experts(pool, (gate[0], up[0], down[0]), x, ids, weights)
    expected = expected_experts(x, ids, weights, gate, up, down)
    # A hidden value near the middle between two codes may round the other way: one step of 1/127 in one product of 256.
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    assert np.median(np.abs(got - expected)) <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("columns", [40, 100])
def test_rows_that_are_no_multiple_of_a_block(pool, rng, columns):
    gate, up = (random_matrix("F32", (1, 21, columns), rng) for _ in range(2))
    down = random_matrix("F16", (1, columns, 21), rng)
    for tokens in (1, 5):
        x = rng.standard_normal((tokens, columns), np.float32)
        ids, weights = np.zeros((tokens, 1), np.int32), np.ones((tokens, 1), np.float32)
        expected = expected_experts(x, ids, weights, gate, up, down)
        assert_close(ffn(pool, (gate[0], up[0], down[0]), x), expected)


def test_silu_of_large_values_is_a_number(pool):
    gate = Matrix(np.array([[-200.0], [200.0], [-80.0], [1.0]], np.float32).view(np.uint8), "F32", 1)
    up = Matrix(np.ones((4, 1), np.float32).view(np.uint8), "F32", 1)
    down = Matrix(np.eye(4, dtype=np.float32)[:1].view(np.uint8), "F32", 4)
    for row, expected in enumerate([0.0, 200.0, 0.0, 1 / (1 + np.exp(-1.0))]):
        down = Matrix(np.eye(4, dtype=np.float32)[row : row + 1].view(np.uint8), "F32", 4)
        got = ffn(pool, (gate, up, down), np.ones((1, 1), np.float32))
        np.testing.assert_allclose(got, [[expected]], rtol=1e-6, atol=1e-30)


def _experts(rng, **changes):
    gate, up = (Matrix(random_weights("Q8_0", (4, 32, 64), rng), "Q8_0", 64) for _ in range(2))
    down = Matrix(random_weights("Q8_0", (4, 64, 32), rng), "Q8_0", 32)
    arguments = {
        "routed": (gate, changes.pop("up", up), down),
        "x": np.ones((2, 64), np.float32),
        "ids": np.zeros((2, 3), np.int32),
        "weights": np.ones((2, 3), np.float32),
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.array([[0, 1, 2], [3, 4, 0]], np.int32)}, "expert 4 of token 1; experts 0 to 3 exist"),
        ({"ids": np.zeros((2, 3), np.int64)}, "needed are C-contiguous int32"),
        ({"weights": np.ones((2, 2), np.float32)}, r"weights is float32\[2, 2\]"),
        ({"x": np.ones((2, 96), np.float32)}, r"needed is float32\[2, 64\]"),
        ({"x": np.ones((2, 128), np.float32)[:, :64]}, "must be C-contiguous"),
        ({"up": Matrix(np.zeros((3, 32, 68), np.uint8), "Q8_0", 64)}, "up must be like gate"),
    ],
)
def test_impossible_experts_are_refused(pool, rng, changes, message):
    with pytest.raises(ValueError, match=message):
        routed_experts(pool, **_experts(rng, **changes))


def test_impossible_products_are_refused(pool, rng):
    matrix, heads = (Matrix(random_weights("Q8_0", shape, rng), "Q8_0", 64) for shape in ((3, 64), (2, 3, 64)))
    squares = Matrix(random_weights("Q8_0", (2, 64, 64), rng), "Q8_0", 64)
    x = np.ones((2, 64), np.float32)
    for call, message in [
        (lambda: linear(pool, matrix, x.astype(np.float64)), "x is float64"),
        (lambda: linear(pool, matrix, x[:, :32]), r"needed is float32\[2, 64\]"),
        (lambda: linear(pool, matrix, np.ones((2, 128), np.float32)[:, ::2]), "with strides"),
        (lambda: linear(pool, matrix, x, np.empty((2, 4), np.float32)), r"out is float32\[2, 4\]"),
        (lambda: linear(pool, matrix, x, np.empty((2, 6), np.float32)[:, ::2]), "C-contiguous"),
        (lambda: linear(pool, heads, x), "this tensor has 2"),
        (lambda: linear_heads(pool, heads, x[:, None]), r"needed is float32\[2, 2, 64\]"),
        (lambda: linear_heads_transposed(pool, heads, x[:, None]), r"needed is float32\[2, 2, 3\]"),
        (lambda: ffn(pool, (squares, squares, squares), x), "ffn takes one matrix each"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
