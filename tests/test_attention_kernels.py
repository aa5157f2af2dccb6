"""Absorbed and expanded attention against float64, over shuffled pages of several sequences."""

import ctypes

import numpy as np
import pytest

from cpu_kernels import attention_absorbed, attention_expanded
from cpu_kernels.attention_expanded import mla_expanded
from cpu_kernels.cache import cache_layer, write_cache
from cpu_kernels.pool import Pool
from hetero import kernel_references as reference
from tests.kernel_inputs import normal

KV = ["f32", "f16", "q8_0"]


@pytest.fixture(scope="module", params=[1, 2])
def pool(request):
    with Pool(request.param) as made:
        yield made


def cached(kv, lengths, latent, rope, seed=0):
    """A layer holding sequences of these lengths in shuffled pages, NaN wherever no token is; and the block table."""
    rng = np.random.default_rng(seed)
    columns = max(-(-length // 64) for length in lengths)
    table = rng.permutation(len(lengths) * columns + 2)[: len(lengths) * columns].astype(np.int32)
    table = table.reshape(len(lengths), columns)
    layer = cache_layer(table.size + 2, kv, latent + rope)
    layer.view(np.uint8)[...] = 0x7F if kv == "q8_0" else 0xFF  # a q8_0 scale of 0x7F7F is NaN too
    for row, length in zip(table, lengths, strict=True):
        slots = (row[:, None] * 64 + np.arange(64)).reshape(-1)[:length].astype(np.int64)
        values = normal(seed + length, length, latent + rope)
        with Pool(1) as pool:
            write_cache(pool, layer, values[:, :latent], values[:, latent:], slots)
    return layer, table


def mla_absorbed(pool, q, layer, table, sequence, positions, scale, latent):
    """With the arguments of the reference, which does not know that q comes in two parts."""
    parts = np.ascontiguousarray(q[:, :, :latent]), q[:, :, latent:]
    return attention_absorbed.mla_absorbed(pool, *parts, layer, table, sequence, positions, scale)


def fill_scratch_with_nan(pool):
    """Scratch memory holds what the last verb left there; no result may depend on it."""
    size = 16 << 20
    ctypes.memset(pool.scratch(size), 0xFF, size)


def up_weights(heads, nope, value, latent, seed=0):
    scale = np.float32(latent**-0.5)
    return normal(seed, heads, nope, latent) * scale, normal(seed + 1, heads, value, latent) * scale


def close(found, expected, tolerance=2e-6):
    assert found.shape == expected.shape and found.dtype == np.float32
    assert abs(found - expected).max() <= tolerance * abs(expected).max()


# ---- absorbed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", KV)
def test_absorbed_decodes_several_sequences(pool, kv):
    lengths = [1, 64, 65, 700, 129]  # one page exactly, one more, several splits
    layer, table = cached(kv, lengths, 256, 64)
    sequence = np.array([3, 0, 4, 1, 2], np.int32)
    positions = np.array(lengths, np.int32)[sequence] - 1
    q = normal(1, 5, 4, 320)
    found = mla_absorbed(pool, q, layer, table, sequence, positions, 0.06, 256)
    close(found, reference.mla_absorbed(q, layer, table, sequence, positions, 0.06, 256))


@pytest.mark.parametrize(
    ("heads", "latent", "rope"), [(128, 512, 64), (16, 512, 64), (3, 24, 8), (1, 8, 2), (33, 40, 6)]
)
def test_absorbed_of_many_shapes(pool, heads, latent, rope):
    layer, table = cached("f32", [200, 90], latent, rope)
    sequence, positions = np.array([0, 0, 0, 1], np.int32), np.array([62, 63, 199, 89], np.int32)
    q = normal(2, 4, heads, latent + rope)
    fill_scratch_with_nan(pool)
    found = mla_absorbed(pool, q, layer, table, sequence, positions, 0.05, latent)
    close(found, reference.mla_absorbed(q, layer, table, sequence, positions, 0.05, latent))


def test_absorbed_chunk_sees_only_the_past(pool):
    layer, table = cached("f16", [300], 64, 16)
    positions = np.arange(250, 300, dtype=np.int32)
    sequence, q = np.zeros(50, np.int32), normal(3, 50, 2, 80)
    found = mla_absorbed(pool, q, layer, table, sequence, positions, 0.1, 64)
    close(found, reference.mla_absorbed(q, layer, table, sequence, positions, 0.1, 64))
    alone = [
        mla_absorbed(pool, q[t : t + 1], layer, table, sequence[:1], positions[t : t + 1], 0.1, 64) for t in (0, 20)
    ]
    np.testing.assert_array_equal(np.concatenate(alone), found[[0, 20]])


@pytest.mark.parametrize("kv", KV)
def test_a_token_does_not_depend_on_those_beside_it(pool, kv):
    lengths = [5, 400, 64, 129, 700, 1, 65, 900]
    layer, table = cached(kv, lengths, 128, 32)
    sequence, positions = np.arange(8, dtype=np.int32)[::-1].copy(), np.array(lengths[::-1], np.int32) - 1
    q = normal(15, 8, 12, 160)
    alone = [
        mla_absorbed(pool, q[t : t + 1], layer, table, sequence[t : t + 1], positions[t : t + 1], 0.1, 128)
        for t in range(8)
    ]
    for count in (2, 3, 8):
        found = mla_absorbed(pool, q[:count], layer, table, sequence[:count], positions[:count], 0.1, 128)
        np.testing.assert_array_equal(found, np.concatenate(alone[:count]))


@pytest.mark.parametrize("heads", [2, 70])
def test_absorbed_at_depth_with_splits_of_many_lengths(pool, heads):
    layer, table = cached("f16", [20000], 16, 8)
    sequence, positions = np.zeros(5, np.int32), np.array([511, 512, 4096, 9000, 19999], np.int32)
    q = normal(4, 5, heads, 24)
    found = mla_absorbed(pool, q, layer, table, sequence, positions, 0.2, 16)
    close(found, reference.mla_absorbed(q, layer, table, sequence, positions, 0.2, 16))


@pytest.mark.parametrize("steady", [2, 6, 16, 64])
def test_splits_follow_each_other_and_the_last_one_holds_the_last_key(steady):
    starts = [attention_absorbed.split_start(split, steady) for split in range(300)]
    assert starts[0] == 0 and all(at % 64 == 0 for at in starts)
    for keys in [*range(1, 30000, 61), 64, 65, 64 * steady, 64 * steady + 1, 163840]:
        count = attention_absorbed.split_count(keys, steady)
        assert starts[count - 1] < keys <= starts[count]
        assert starts[count] - starts[count - 1] <= max(64, 2 * keys / steady)


def test_a_recorded_call_follows_what_is_in_memory(pool):
    """Positions, pages and queries of a replay are those of then, to the end of the table."""
    layer, table = cached("f16", [700, 700], 64, 16)
    q, positions, rows = normal(16, 1, 3, 80), np.array([4], np.int32), table[:1].copy()
    parts, sequence = [q[:, :, :64].copy(), q[:, :, 64:].copy()], np.zeros(1, np.int32)
    with pool.record() as program:
        out = attention_absorbed.mla_absorbed(pool, *parts, layer, rows, sequence, positions, 0.1)
    for position, row, seed in ((5, 0, 17), (699, 1, 18), (64, 0, 19)):
        q = normal(seed, 1, 3, 80)
        parts[0][...], parts[1][...], positions[...], rows[...] = q[:, :, :64], q[:, :, 64:], position, table[row]
        program.replay()
        fill_scratch_with_nan(pool)
        np.testing.assert_array_equal(
            out, mla_absorbed(pool, q, layer, table, np.array([row], np.int32), positions, 0.1, 64)
        )


def test_absorbed_in_groups_of_bounded_memory(pool, monkeypatch):
    layer, table = cached("f32", [400, 300], 32, 8)
    sequence = np.array([0] * 5 + [1] * 4, np.int32)
    positions = np.array([395, 396, 397, 398, 399, 10, 200, 298, 299], np.int32)
    q = normal(5, 9, 20, 40)
    whole = mla_absorbed(pool, q, layer, table, sequence, positions, 0.1, 32)
    monkeypatch.setattr(attention_absorbed, "PARTIAL_BYTES", 20000)  # two tokens
    np.testing.assert_array_equal(mla_absorbed(pool, q, layer, table, sequence, positions, 0.1, 32), whole)


def test_threads_change_nothing():
    layer, table = cached("f16", [900], 64, 16)
    positions = np.arange(700, 900, dtype=np.int32)
    q, up = normal(6, 200, 3, 80), up_weights(3, 64, 24, 64)
    results = []
    for threads in (1, 2, 3):
        with Pool(threads) as pool:
            absorbed = mla_absorbed(pool, q[:9], layer, table, np.zeros(9, np.int32), positions[:9], 0.1, 64)
            results.append((absorbed, mla_expanded(pool, q, *up, layer, table[0], positions, 0.1)))
    for other in results[1:]:
        np.testing.assert_array_equal(other[0], results[0][0])
        np.testing.assert_array_equal(other[1], results[0][1])


# ---- expanded -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", KV)
def test_expanded_prefills_behind_a_cached_context(pool, kv):
    layer, table = cached(kv, [64, 330], 256, 64)
    positions, q = np.arange(180, 330, dtype=np.int32), normal(7, 150, 4, 128)
    k_up, v_up = up_weights(4, 64, 64, 256)
    found = mla_expanded(pool, q, k_up, v_up, layer, table[1], positions, 0.09)
    close(found, reference.mla_expanded(q, k_up, v_up, layer, table[1], positions, 0.09))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("heads", "latent", "rope", "nope", "value"),
    [(2, 512, 64, 128, 128), (3, 24, 8, 10, 6), (1, 8, 2, 2, 2), (5, 40, 16, 7, 33), (2, 72, 8, 16, 16)],
)
def test_expanded_of_many_shapes(pool, heads, latent, rope, nope, value, transposed):
    layer, table = cached("f32", [140], latent, rope)
    positions, q = np.array([0, 1, 63, 64, 127, 128, 139], np.int32), normal(8, 7, heads, nope + rope)
    k_up, v_up = up_weights(heads, nope, value, latent)
    fill_scratch_with_nan(pool)
    k = np.ascontiguousarray(k_up.swapaxes(1, 2)) if transposed else k_up
    found = mla_expanded(pool, q, k, v_up, layer, table[0], positions, 0.1, transposed)
    close(found, reference.mla_expanded(q, k_up, v_up, layer, table[0], positions, 0.1))


def test_expanded_of_strided_queries(pool):
    layer, table = cached("f16", [100], 32, 8)
    positions, up = np.arange(50, 100, dtype=np.int32), up_weights(3, 16, 16, 32)
    wide = normal(21, 50, 3, 30)
    q = wide[:, :, 6:]
    expected = mla_expanded(pool, q.copy(), *up, layer, table[0], positions, 0.2)
    np.testing.assert_array_equal(mla_expanded(pool, q, *up, layer, table[0], positions, 0.2), expected)


def test_expanded_in_parts_of_the_queries(pool, monkeypatch):
    layer, table = cached("f32", [300], 32, 8)
    positions, q, up = np.arange(300, dtype=np.int32), normal(9, 300, 2, 24), up_weights(2, 16, 16, 32)
    whole = mla_expanded(pool, q, *up, layer, table[0], positions, 0.2)
    close(whole, reference.mla_expanded(q, *up, layer, table[0], positions, 0.2))
    monkeypatch.setattr(attention_expanded, "QUERIES", 64)
    np.testing.assert_array_equal(mla_expanded(pool, q, *up, layer, table[0], positions, 0.2), whole)


def test_a_bad_query_shows_in_its_row_alone(pool):
    """Without this a damaged weight would turn a head's softmax into a plain mean, and no logit into NaN."""
    layer, table = cached("f32", [300], 32, 16)
    positions, q, up = np.array([290, 299], np.int32), normal(11, 2, 3, 48), up_weights(3, 32, 16, 32)
    q[1, 2, 5] = np.nan
    for found in (
        mla_absorbed(pool, q, layer, table, np.zeros(2, np.int32), positions, 0.1, 32),
        mla_expanded(pool, q, *up, layer, table[0], positions, 0.1),
    ):
        np.testing.assert_array_equal(np.isnan(found).any(axis=2), np.isnan(found).all(axis=2))
        np.testing.assert_array_equal(np.isnan(found[:, :, 0]), [[False] * 3, [False, False, True]])


@pytest.mark.parametrize("kv", KV)
def test_absorbed_equals_expanded(pool, kv):
    layer, table = cached(kv, [333], 128, 32)
    positions, q = np.arange(300, 333, dtype=np.int32), normal(10, 33, 4, 64)
    k_up, v_up = up_weights(4, 32, 48, 128)
    expanded = mla_expanded(pool, q, k_up, v_up, layer, table[0], positions, 0.15)
    query = np.concatenate([np.einsum("thn,hnc->thc", q[:, :, :32], k_up), q[:, :, 32:]], axis=2)
    latent = mla_absorbed(pool, query, layer, table, np.zeros(33, np.int32), positions, 0.15, 128)
    close(expanded, np.einsum("thc,hvc->thv", latent, v_up), 1e-5)


@pytest.mark.parametrize("magnitude", [1e4, 1e-4])
def test_extreme_scores_stay_finite(pool, magnitude):
    layer, table = cached("f32", [500], 64, 16)
    positions = np.array([3, 100, 499], np.int32)
    q, up = normal(11, 3, 4, 80), up_weights(4, 64, 32, 64)
    expected = reference.mla_absorbed(q, layer, table, [0] * 3, positions, magnitude, 64)
    found = mla_absorbed(pool, q, layer, table, np.zeros(3, np.int32), positions, magnitude, 64)
    assert np.isfinite(found).all()
    close(found, expected, 1e-4)
    found = mla_expanded(pool, q, *up, layer, table[0], positions, magnitude)
    assert np.isfinite(found).all()
    close(found, reference.mla_expanded(q, *up, layer, table[0], positions, magnitude), 1e-4)


# ---- what the wrappers refuse ---------------------------------------------------------------------------------------


def test_nothing_in_nothing_out(pool):
    layer, table = cached("f16", [64], 32, 8)
    none = np.zeros(0, np.int32)
    assert mla_absorbed(pool, normal(0, 0, 4, 40), layer, table, none, none, 1.0, 32).shape == (0, 4, 32)
    assert mla_expanded(pool, normal(0, 0, 4, 24), *up_weights(4, 16, 8, 32), layer, table[0], none, 1.0).shape == (
        0,
        4,
        8,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"positions": np.array([64], np.int32)},
        {"positions": np.array([-1], np.int32)},
        {"positions": np.array([3], np.int64)},
        {"positions": np.array([3, 4], np.int32)},
        {"sequence": np.array([1], np.int32)},
        {"table": np.array([[3]], np.int32)},
        {"table": np.array([[-1]], np.int32)},
        {"q": np.zeros((1, 4, 31), np.float32)},
        {"q": np.zeros((1, 4, 32))},
        {"q": np.zeros((1, 4, 64), np.float32)[:, :, ::2]},
        {"q": np.zeros((1, 3, 32), np.float32)},
        {"rope": np.zeros((1, 4, 9), np.float32)},
        {"rope": np.zeros((1, 4, 8))},
        {"rope": np.zeros((1, 4, 16), np.float32)[:, :, ::2]},
    ],
)
def test_absorbed_refuses_what_would_read_elsewhere(pool, change):
    layer, table = cached("f16", [64], 32, 8)
    zero = np.zeros(1, np.int32)
    q = normal(0, 1, 4, 40)
    case = {
        "q": q[:, :, :32].copy(),
        "rope": q[:, :, 32:],
        "table": table,
        "sequence": zero,
        "positions": zero,
    } | change
    context = layer, case["table"], case["sequence"], case["positions"]
    with pytest.raises(ValueError, match="mla_absorbed"):
        attention_absorbed.mla_absorbed(pool, case["q"], case["rope"], *context, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": np.array([1, 0], np.int32)},
        {"positions": np.array([0, 64], np.int32)},
        {"positions": np.array([0], np.int32)},
        {"table": np.array([3], np.int32)},
        {"k_up": np.zeros((3, 16, 32), np.float32)},
        {"k_up": np.zeros((4, 16, 32))},
        {"k_up": np.zeros((4, 8, 32), np.float32)},
        {"v_up": np.zeros((4, 8, 31), np.float32)},
        {"q": np.zeros((2, 4, 8), np.float32)},
    ],
)
def test_expanded_refuses_what_would_read_elsewhere(pool, change):
    layer, table = cached("f16", [64], 32, 8)
    k_up, v_up = up_weights(4, 16, 8, 32)
    positions = np.array([0, 1], np.int32)
    case = {"q": normal(0, 2, 4, 24), "k_up": k_up, "v_up": v_up, "table": table[0], "positions": positions} | change
    with pytest.raises(ValueError, match="mla_expanded"):
        mla_expanded(pool, case["q"], case["k_up"], case["v_up"], layer, case["table"], case["positions"], 1.0)
