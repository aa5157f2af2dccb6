import numpy as np
import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave

from cpu_kernels.norm_rope import rms_norm, rope
from cpu_kernels.pool import Pool
from hetero import kernel_references as reference
from tests.kernel_inputs import angles, normal


@pytest.fixture(scope="module", params=[1, 2])
def pool(request):
    with Pool(request.param) as made:
        yield made


@pytest.mark.parametrize(("tokens", "columns"), [(1, 7168), (5, 512), (3, 2), (0, 64), (7, 7168)])
def test_rms_norm_equals_the_reference_and_torch(pool, tokens, columns):
    x, weight = normal(1, tokens, columns) * 30, normal(2, columns)
    result = rms_norm(pool, x, weight, 1e-6)
    np.testing.assert_allclose(result, reference.rms_norm(x, weight, 1e-6), rtol=1e-6)
    theirs = torch.nn.functional.rms_norm(torch.from_numpy(x), (columns,), torch.from_numpy(weight), 1e-6)
    np.testing.assert_allclose(result, theirs.numpy(), rtol=2e-6)


def test_rms_norm_eps_counts_for_tiny_rows(pool):
    x, weight = normal(3, 2, 64) * 1e-4, normal(4, 64)
    np.testing.assert_allclose(rms_norm(pool, x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), rtol=1e-6)
    assert (rms_norm(pool, np.zeros_like(x), weight, 1e-6) == 0).all()


def test_rms_norm_reads_strided_rows_and_writes_into_out(pool):
    wide, weight = normal(5, 4, 576), normal(6, 512)
    expected = reference.rms_norm(wide[:, :512], weight, 1e-6)
    out = np.full((4, 600), np.nan, np.float32)
    assert rms_norm(pool, wide[:, :512], weight, 1e-6, out=out[:, :512]).base is out
    np.testing.assert_allclose(out[:, :512], expected, rtol=1e-6)
    assert np.isnan(out[:, 512:]).all()
    np.testing.assert_allclose(rms_norm(pool, wide[:, :512], weight, 1e-6, out=wide[:, :512]), expected, rtol=1e-6)


@pytest.mark.parametrize(("tokens", "columns"), [(1, 2048), (33, 1001)])
def test_rms_norm_adds_first(pool, tokens, columns):
    x, y, weight = normal(7, tokens, columns), normal(8, tokens, columns + 5)[:, 5:], normal(9, columns)
    total = x + y
    result = rms_norm(pool, x, weight, 1e-6, add=y)
    np.testing.assert_array_equal(x, total)
    np.testing.assert_array_equal(result, rms_norm(pool, total, weight, 1e-6))


def test_rms_norm_refuses_to_add_what_does_not_fit(pool):
    x = normal(7, 2, 8)
    for y in (normal(8, 3, 8), normal(8, 2, 8).astype(np.float64), normal(8, 2, 16)[:, ::2]):
        with pytest.raises(ValueError, match="rms_norm"):
            rms_norm(pool, x, np.ones(8, np.float32), 1e-6, add=y)


def test_rms_norm_refuses_what_does_not_fit(pool):
    x, weight = normal(7, 2, 8), normal(8, 8)
    for arguments in ((x, weight[:4]), (x[0], weight), (x.astype(np.float64), weight)):
        with pytest.raises(ValueError, match="rms_norm"):
            rms_norm(pool, *arguments, 1e-6)
    with pytest.raises(ValueError, match="out has shape"):
        rms_norm(pool, x, weight, 1e-6, out=np.empty((1, 8), np.float32))


@pytest.mark.parametrize(("heads", "dimensions"), [(128, 64), (1, 64), (3, 2)])
def test_rope_turns_the_rope_part_of_queries_only(pool, heads, dimensions):
    q = normal(9, 5, heads, 16 + dimensions)
    before, (cos, sin) = q.copy(), angles(5, dimensions // 2)
    rope(pool, q[:, :, 16:], cos, sin)
    assert (q[:, :, :16] == before[:, :, :16]).all()
    np.testing.assert_allclose(q[:, :, 16:], reference.rope(before[:, :, 16:], cos, sin), atol=1e-6)
    assert abs(q[1:, :, 16:] - before[1:, :, 16:]).max() > 0.1


def test_rope_equals_transformers(pool):
    q, key, (cos, sin) = normal(10, 6, 4, 64), normal(11, 6, 1, 64), angles(6, 32)
    twice = [torch.from_numpy(np.concatenate([a, a], axis=1))[None] for a in (cos, sin)]
    tensors = [torch.from_numpy(x.swapaxes(0, 1).copy())[None] for x in (q, key)]  # [1, heads, T, R]
    theirs = apply_rotary_pos_emb_interleave(*tensors, *twice)
    for mine, other in zip((q, key), theirs, strict=True):
        rope(pool, mine, cos, sin)
        other = other[0].numpy().swapaxes(0, 1)
        # Releases differ in whether they return the pairs interleaved or as two halves: attention cannot tell.
        halves = np.concatenate([other[..., :32, None], other[..., 32:, None]], axis=-1).reshape(other.shape)
        assert min(abs(mine - other).max(), abs(mine - halves).max()) < 1e-6


def test_rope_of_a_key_without_head_axis(pool):
    kv, (cos, sin) = normal(12, 4, 576), angles(4, 32)
    expected = reference.rope(kv[:, None, 512:], cos, sin)[:, 0]
    rope(pool, kv[:, 512:], cos, sin)
    np.testing.assert_allclose(kv[:, 512:], expected, atol=1e-6)


def test_rope_of_no_tokens(pool):
    x, (cos, sin) = np.empty((0, 2, 64), np.float32), angles(0, 32)
    rope(pool, x, cos, sin)
    rope(pool, x[:, 0], cos, sin)


def test_rope_refuses_what_does_not_fit(pool):
    x, (cos, sin) = normal(13, 4, 2, 8), angles(4, 4)
    for arguments in (
        (x, cos[:3], sin),
        (x[:, :, :7], cos, sin),
        (x, cos, sin[:, :2]),
        (x[0, 0], cos, sin),
        (x[:, :, ::2], cos[:, :2], sin[:, :2]),
    ):
        with pytest.raises(ValueError, match="rope"):
            rope(pool, *arguments)
    with pytest.raises(ValueError, match="float32"):
        rope(pool, x.astype(np.float64), cos, sin)
