"""cpu_kernels.write_latent: the three verbs it stands for, bit for bit, and recorded like them."""

import numpy as np
import pytest

from cpu_kernels import Pool, cache_layer, rms_norm, rope, write_cache, write_latent
from hetero import kernel_references as reference
from tests.kernel_inputs import angles, normal

Q, C, R = 48, 64, 32


@pytest.fixture(scope="module", params=[1, 2])
def pool(request):
    with Pool(request.param) as made:
        yield made


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("tokens", [0, 1, 70])
def test_is_rope_norm_and_write(pool, kv, tokens):
    both, norm, slots = normal(1, tokens, Q + C + R), normal(2, C), np.random.default_rng(3).permutation(128)[:tokens]
    found, expected, (cos, sin) = cache_layer(2, kv, C + R), cache_layer(2, kv, C + R), angles(tokens, R // 2)
    key = both[:, Q + C :].copy()
    rope(pool, key, cos, sin)
    write_cache(pool, expected, rms_norm(pool, both[:, Q : Q + C], norm, 1e-6), key, slots)
    query = both[:, :Q].copy()
    write_latent(pool, both, Q, norm, 1e-6, cos, sin, found, slots)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(both[:, :Q], query)
    if kv == "f32":
        latent = reference.rms_norm(both[:, Q : Q + C], norm, 1e-6)
        np.testing.assert_allclose(found.reshape(128, -1)[slots, :C], latent, rtol=1e-6)


def test_is_recorded(pool):
    both, norm, slots, (cos, sin) = normal(1, 2, C + R), normal(2, C), np.array([5, 77]), angles(2, R // 2)
    layer = cache_layer(2, "f16", C + R)
    with pool.record() as program:
        write_latent(pool, both, 0, norm, 1e-6, cos, sin, layer, slots)
    both[...], slots[...] = normal(4, 2, C + R), [6, 78]
    expected, copy = layer.copy(), both.copy()
    program.replay()
    write_latent(pool, copy, 0, norm, 1e-6, cos, sin, expected, slots)
    np.testing.assert_array_equal(layer, expected)
    assert layer[0, 6].any() and layer[1, 14].any()


@pytest.mark.parametrize("q_rows", [-1, C + R, 1000])
def test_refuses_what_does_not_fit(pool, q_rows):
    both, norm, (cos, sin) = normal(1, 2, Q + C + R), normal(2, C), angles(2, R // 2)
    layer, slots = cache_layer(2, "f16", C + R), np.arange(2)
    with pytest.raises(ValueError, match="write_latent"):
        write_latent(pool, both, q_rows, norm, 1e-6, cos, sin, layer, slots)
    with pytest.raises(ValueError, match="write_latent"):
        write_latent(pool, both[0], Q, norm, 1e-6, cos, sin, layer, slots)
