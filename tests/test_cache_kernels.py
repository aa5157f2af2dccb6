import gguf
import numpy as np
import pytest

from cpu_kernels import half
from cpu_kernels.cache import cache_layer, cache_width, read_cache, write_cache
from cpu_kernels.pool import Pool
from hetero import kernel_references as reference

KV = ["f32", "f16", "q8_0"]
TOLERANCE = {"f32": 0, "f16": 2**-11, "q8_0": 1 / 250}  # of the largest value


@pytest.fixture(scope="module", params=[1, 2])
def pool(request):
    with Pool(request.param) as made:
        yield made


def rows(count, width, seed=0, spread=1.0):
    return (np.random.default_rng(seed).standard_normal((count, width)) * spread).astype(np.float32)


def filled(pool, kv, width=576, latent=512, pages=3, count=100, spread=1.0):
    """A layer with `count` rows written in random slots; the layer, the rows and their slots."""
    layer, values = cache_layer(pages, kv, width), rows(count, width, spread=spread)
    slots = np.random.default_rng(1).permutation(pages * 64)[:count]
    write_cache(pool, layer, values[:, :latent], values[:, latent:], slots)
    return layer, values, slots


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize(("latent", "rope"), [(512, 64), (256, 64), (24, 8)])
def test_what_is_written_is_read(pool, kv, latent, rope):
    layer, values, slots = filled(pool, kv, latent + rope, latent)
    assert cache_width(layer) == latent + rope
    back = read_cache(layer, slots)
    assert back.dtype == np.float32
    assert abs(back - values).max() <= TOLERANCE[kv] * abs(values).max()
    np.testing.assert_array_equal(back, reference.cache_values(layer)[slots])


@pytest.mark.parametrize("kv", KV)
def test_other_slots_stay_untouched(pool, kv):
    layer, _, slots = filled(pool, kv)
    others = np.setdiff1d(np.arange(192), slots)
    assert len(others) == 92 and (read_cache(layer, others) == 0).all()
    before = layer.copy()
    write_cache(pool, layer, rows(0, 512), rows(0, 64), np.empty(0, np.int64))
    assert (layer == before).all()


def test_sizes_per_token():
    assert [cache_layer(2, kv, 576).nbytes // 128 for kv in KV] == [2304, 1152, 612]


@pytest.mark.parametrize("spread", [1e-6, 1.0, 3e4])
def test_f16_is_ieee_half(pool, spread):
    layer, values, slots = filled(pool, "f16", spread=spread)
    expected = np.clip(values, -65504, 65504).astype(np.float16)
    np.testing.assert_array_equal(layer.reshape(192, -1)[slots].view(np.uint16), expected.view(np.uint16))


def test_too_large_for_f16_saturates_instead_of_poisoning(pool):
    layer = cache_layer(1, "f16", 34)
    values = np.full((1, 34), 1e6, np.float32)
    values[0, 1], values[0, 2], values[0, 3] = -np.inf, np.nan, 65519.0
    write_cache(pool, layer, values[:, :32], values[:, 32:], np.zeros(1, np.int64))
    back = read_cache(layer, np.zeros(1, np.int64))[0]
    assert back[0] == 65504 and back[1] == -65504 and np.isnan(back[2]) and back[3] == 65504


@pytest.mark.parametrize("spread", [1e-20, 1e-7, 1.0, 1e4])
def test_q8_0_is_ggml_bit_for_bit(pool, spread):
    values = rows(64, 576, seed=3, spread=spread)
    values[0] = 0
    values[1, :32] = np.linspace(-127, 127, 32)
    values[2, :64:2] = np.arange(32) + 0.5  # scale 1/4: quotients land on halves
    values[2, 32] = 31.75 * 4
    layer = cache_layer(1, "q8_0", 576)
    write_cache(pool, layer, values[:, :512], values[:, 512:], np.arange(64))
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(layer[0], expected)


@pytest.mark.parametrize("at", [0, 5, 31])
def test_nan_stays_nan_in_q8_0(pool, at):
    layer, values, slot = cache_layer(1, "q8_0", 64), np.ones((1, 64), np.float32), np.zeros(1, np.int64)
    values[0, at] = np.nan
    write_cache(pool, layer, values[:, :48], values[:, 48:], slot)
    np.testing.assert_array_equal(np.isnan(read_cache(layer, slot)[0]), np.arange(64) < 32)


def test_half_to_float_by_bits_for_every_pattern():
    patterns = np.arange(1 << 16, dtype=np.uint16)
    found = np.array([half.half_to_float_by_bits(bits) for bits in patterns], np.float32)
    np.testing.assert_array_equal(found, patterns.view(np.float16).astype(np.float32))
    assert np.signbit(found[0x8000])


def test_float_to_half_by_bits_at_every_rounding_border():
    halves = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = ((halves[:-1] + halves[1:]) / 2).astype(np.float32)
    values = np.concatenate([middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(1e6))])
    values = np.concatenate([values, -values, halves.astype(np.float32), rows(1, 1000)[0] * 1e-5])
    found = np.array([half.float_to_half_by_bits(x) for x in values], np.uint16)
    np.testing.assert_array_equal(found, values.astype(np.float16).view(np.uint16))
    assert np.isnan(np.uint16(half.float_to_half_by_bits(np.float32(np.nan))).view(np.float16))


def test_refuses_what_does_not_fit(pool):
    layer, latent, rope = cache_layer(2, "f16", 576), rows(3, 512), rows(3, 64)
    slots = np.arange(3)
    for wrong in (np.array([0, 1, 128]), np.array([0, -1, 2])):
        with pytest.raises(ValueError, match="slots"):
            write_cache(pool, layer, latent, rope, wrong)
        with pytest.raises(ValueError, match="slots"):
            read_cache(layer, wrong)
    for arguments in (
        (layer, latent[:, :500], rope, slots),
        (layer, latent[:2], rope, slots),
        (layer, latent.astype(np.float64), rope, slots),
        (layer, latent, rope, slots.astype(np.int32)),
        (layer[:, :, ::2], latent, rope, slots),
        (layer.astype(np.float64), latent, rope, slots),
        (layer[:, :32].copy(), latent, rope, slots),
    ):
        with pytest.raises(ValueError, match="write_cache"):
            write_cache(pool, *arguments)
    with pytest.raises(ValueError, match="multiples of 32"):
        cache_layer(1, "q8_0", 40)
    with pytest.raises(ValueError, match="unknown"):
        cache_layer(1, "q4_0", 64)
