"""The GPU's latent cache and attention in Triton's interpreter, against float64 and against cpu_kernels."""

import warnings

import gguf
import numpy as np
import pytest
import torch

from cpu_kernels import attention_absorbed as on_cpu
from cpu_kernels.cache import cache_layer as cpu_layer
from cpu_kernels.cache import read_cache, write_cache
from cpu_kernels.pool import Pool
from gpu_kernels import attention_absorbed, attention_expanded
from gpu_kernels.attention_absorbed import mla_absorbed, mla_absorbed_twin
from gpu_kernels.attention_expanded import mla_expanded, mla_expanded_twin
from gpu_kernels.cache import Layer, cache_layer, store_cached
from gpu_kernels.device import Device
from gpu_kernels.errors import GpuError
from gpu_kernels.jit import jit, tl
from gpu_kernels.matrix import Matrix
from hetero import kernel_references as reference
from tests.test_attention_kernels import cached, normal, up_weights

pytestmark = pytest.mark.interpreter

KV = ["f16", "q8_0"]
HOPPER = 90  # whose tiling differs


def device_of(capability: int = 0, sms: int = 4) -> Device:
    device = Device.interpreter()
    device.capability, device.sms = capability, sms
    return device


def close(found: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-3) -> None:
    """Float16 rounds a query or a weight by 2^-11; what is summed deviates less."""
    assert tuple(found.shape) == expected.shape and found.dtype == torch.float32
    assert abs(found.numpy() - expected).max() <= tolerance * abs(expected).max()


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def run(verb, device, q, layer, table, sequence, positions, scale, latent, **more) -> torch.Tensor:
    """The arguments of the reference, which does not know that q comes in two parts, to a verb of this package."""
    q = torch.from_numpy(q)
    context = (torch.from_numpy(part) for part in (table, sequence, positions))
    parts = q[:, :, :latent].contiguous(), q[:, :, latent:]
    return verb(device, *parts, Layer.from_blocks(device, layer), *context, scale, **more)


# ---- cache ----------------------------------------------------------------------------------------------------------


@jit
def _store_kernel(
    x,
    slots,
    values,
    scales,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
    Q8: tl.constexpr,
):
    WIDTH: tl.constexpr = LATENT + ROPE
    slot = tl.load(slots + tl.program_id(0))
    row = x + tl.program_id(0) * WIDTH
    latent, key = tl.arange(0, BC), tl.arange(0, BR)
    store_cached(values, scales, slot, tl.load(row + latent, mask=latent < LATENT, other=0.0), 0, LATENT, BC, WIDTH, Q8)
    key = tl.load(row + LATENT + key, mask=key < ROPE, other=0.0)
    store_cached(values, scales, slot, key, LATENT, ROPE, BR, WIDTH, Q8)


def difficult_rows(width: int) -> np.ndarray:
    """float32 [5, width]: noise, halves between two codes, huge and tiny numbers, one NaN, zeros."""
    rows = normal(3, 5, width)
    rows[1] = (np.arange(width) % 255 - 127) / 2.0
    rows[1, ::32] = 127
    rows[2] *= np.float32(10.0) ** np.arange(-40, 38, dtype=np.float32)[np.arange(width) * 78 // width]
    rows[3, 5], rows[4] = np.nan, 0
    return rows


@pytest.mark.parametrize("kv", KV)
def test_rows_are_stored_as_the_cpu_stores_them(kv: str) -> None:
    latent, rope = 96, 32
    x, slots = difficult_rows(latent + rope), np.array([70, 3, 64, 127, 0])
    with np.errstate(all="ignore"), Pool(1) as pool:
        expected = cpu_layer(2, kv, latent + rope)
        write_cache(pool, expected, x[:, :latent], x[:, latent:], slots)
        device = device_of()
        layer = cache_layer(device, 2, kv, latent + rope)
        arguments = torch.from_numpy(x), torch.from_numpy(slots), *layer.planes
        device.launch(_store_kernel, (5,), *arguments, LATENT=latent, ROPE=rope, BC=128, BR=32, Q8=layer.q8)
    found = layer.blocks()
    if kv == "f16":  # any NaN will do
        np.testing.assert_array_equal(found, expected)
    else:
        nan = np.isnan(found.reshape(2, 64, -1, 34)[:, :, :, :2].copy().view(np.float16))[:, :, :, 0]
        assert nan.sum() == 1 and np.isnan(read_cache(expected, slots[3:4])).sum() == 32
        np.testing.assert_array_equal(found.reshape(2, 64, -1, 34)[~nan], expected.reshape(2, 64, -1, 34)[~nan])


@pytest.mark.parametrize("kv", KV)
def test_layers_travel_to_the_cpu_and_back(kv: str) -> None:
    blocks, _ = cached(kv, [150], 96, 32)
    layer = Layer.from_blocks(device_of(), blocks)
    assert layer.nbytes == blocks.nbytes and len(layer) == len(blocks) and layer.width == 128
    np.testing.assert_array_equal(layer.blocks().view(np.uint8), blocks.view(np.uint8))
    pages = torch.tensor([4, 0])
    expected = read_cache(blocks, np.r_[256:320, 0:64])
    np.testing.assert_array_equal(layer.rows(pages, torch.float32).numpy(), expected)
    empty = cache_layer(device_of(), len(blocks), kv, 128)
    assert empty.nbytes == layer.nbytes and not empty.blocks().any()


def test_a_cache_that_cannot_be_is_refused() -> None:
    device = Device.plain()
    with pytest.raises(GpuError, match=r"f32 cache.*--kv f16"):
        cache_layer(device, 1, "f32", 576)
    for kv, width in ("q4_0", 576), ("q8_0", 48), ("f16", 36):
        with pytest.raises(ValueError, match="cache_layer"):
            cache_layer(device, 1, kv, width)


# ---- absorbed -------------------------------------------------------------------------------------------------------

LENGTHS = [1, 17, 64, 65, 333]  # within a tile, ends of pages, several splits


@pytest.mark.parametrize("kv", KV)
def test_absorbed_decodes_several_sequences(kv: str) -> None:
    layer, table = cached(kv, LENGTHS, 256, 64)
    sequence = ints(3, 0, 4, 1, 2)
    positions = ints(*LENGTHS)[sequence] - 1
    q = normal(1, 5, 4, 320)
    arguments = q, layer, table, sequence, positions, 0.06, 256
    expected = reference.mla_absorbed(*arguments)
    close(run(mla_absorbed, device_of(), *arguments), expected)
    close(run(mla_absorbed_twin, Device.plain(), *arguments), expected, 1e-5)
    with Pool(1) as pool:
        parts = np.ascontiguousarray(q[:, :, :256]), q[:, :, 256:]
        there = on_cpu.mla_absorbed(pool, *parts, layer, table, sequence, positions, 0.06)
    close(run(mla_absorbed, device_of(), *arguments), there)


@pytest.mark.parametrize("splits", [1, 11])
def test_splits_change_nothing(splits: int) -> None:
    """Of 11 ten are empty at 17 tokens."""
    layer, table = cached("f16", [333, 17], 64, 16)
    arguments = normal(2, 3, 20, 80), layer, table, ints(0, 1, 0), ints(332, 16, 64), 0.1, 64
    close(run(mla_absorbed, device_of(), *arguments, splits=splits), reference.mla_absorbed(*arguments))


@pytest.mark.soak
@pytest.mark.parametrize("capability", [89, HOPPER])
@pytest.mark.parametrize(
    ("kv", "heads", "latent", "rope"), [("f16", 70, 96, 16), ("q8_0", 40, 96, 32), ("f16", 3, 24, 8)]
)
def test_absorbed_of_many_shapes(capability: int, kv: str, heads: int, latent: int, rope: int) -> None:
    """Heads and columns that no tile divides; both ways in which a tile may stand."""
    layer, table = cached(kv, [200, 90], latent, rope)
    arguments = normal(3, 2, heads, latent + rope), layer, table, ints(0, 1), ints(199, 89), 0.05, latent
    close(run(mla_absorbed, device_of(capability, 12), *arguments), reference.mla_absorbed(*arguments))


@pytest.mark.soak
@pytest.mark.parametrize("capability", [89, HOPPER])
@pytest.mark.parametrize("kv", KV)
def test_absorbed_of_deepseek_v3(capability: int, kv: str) -> None:
    layer, table = cached(kv, [333], 512, 64)
    arguments = normal(4, 2, 128, 576), layer, table, ints(0, 0), ints(331, 332), 0.135, 512
    close(run(mla_absorbed, device_of(capability, 16), *arguments), reference.mla_absorbed(*arguments))


def test_tokens_of_one_sequence_see_only_their_past() -> None:
    layer, table = cached("f16", [300], 64, 16)
    positions, sequence, q = np.arange(292, 300, dtype=np.int32), np.zeros(8, np.int32), normal(5, 8, 4, 80)
    expected = reference.mla_absorbed(q, layer, table, sequence, positions, 0.1, 64)
    rows = layer.reshape(-1, 80)
    for later in range(296, 300):  # NaN in the place of every token after the first four
        rows[table[0, later // 64] * 64 + later % 64] = np.nan
    found = run(mla_absorbed, device_of(sms=16), q[:4], layer, table, sequence[:4], positions[:4], 0.1, 64)
    close(found, expected[:4])


def test_a_token_without_a_position_attends_nothing() -> None:
    """As the places of a captured step that no sequence has."""
    layer, table = cached("f16", [100], 64, 16)
    q = normal(6, 2, 4, 80)
    for splits in (1, 3):
        found = run(mla_absorbed, device_of(), q, layer, table, ints(0, 0), ints(-1, 99), 0.1, 64, splits=splits)
        assert not found[0].any()
        close(found[1:], reference.mla_absorbed(q[1:], layer, table, ints(0), ints(99), 0.1, 64))


def test_extreme_scores_stay_finite() -> None:
    layer, table = cached("f16", [200], 64, 16)
    for magnitude in (1e5, 1e-5):
        found = run(mla_absorbed, device_of(), normal(7, 1, 4, 80), layer, table, ints(0), ints(199), magnitude, 64)
        assert torch.isfinite(found).all()


def test_a_bad_query_shows_in_its_row_alone() -> None:
    layer, table = cached("f16", [200], 64, 16)
    q = normal(8, 1, 3, 80)
    q[0, 1, 5] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of NaN
        found = run(mla_absorbed, device_of(), q, layer, table, ints(0), ints(199), 0.1, 64)
    np.testing.assert_array_equal(found.isnan().numpy(), np.array([[[False], [True], [False]]]) * np.ones(64, bool))


def test_splits_fill_the_gpu_once() -> None:
    count, on_4090 = attention_absorbed.count_splits, attention_absorbed.choose_tiling(89, 128, False)
    assert count(on_4090, 1, 128, 512, 128) * 4 == 128
    assert count(on_4090, 1, 128, 1, 128) == 2  # a page is two tiles
    assert count(on_4090, 100, 128, 512, 128) == 1
    assert count(attention_absorbed.choose_tiling(89, 16, False), 1, 16, 512, 1000) == 256


# ---- expanded -------------------------------------------------------------------------------------------------------


def matrices(device: Device, heads: int, nope: int, value: int, latent: int, transposed: bool) -> tuple:
    """k_b and v_b of Q8_0 and F16, and the float32 values W_uk [H, N, C], W_uv [H, V, C] that they stand for."""
    k_up, v_up = up_weights(heads, nope, value, latent)
    k = np.ascontiguousarray(k_up.swapaxes(1, 2)) if transposed else k_up
    packed = gguf.quants.quantize(k, gguf.GGMLQuantizationType.Q8_0)
    k = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    v_up = v_up.astype(np.float16)
    k_b = Matrix.from_gguf(device, packed, "Q8_0", k.shape[2])
    v_b = Matrix.from_gguf(device, v_up.view(np.uint8), "F16", latent)
    return k_b, v_b, k.swapaxes(1, 2) if transposed else k, v_up.astype(np.float32)


def expand(verb, device, q, k_b, v_b, layer, row, positions, scale, *more, **options) -> torch.Tensor:
    arguments = (torch.from_numpy(part) for part in (row[: max(positions) // 64 + 1], positions))
    return verb(
        device, torch.from_numpy(q), k_b, v_b, Layer.from_blocks(device, layer), *arguments, scale, *more, **options
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kv", KV)
def test_expanded_prefills_behind_a_cached_context(kv: str, transposed: bool, monkeypatch) -> None:
    monkeypatch.setattr(attention_expanded, "EXPANDED_BYTES", 2 << 17)  # two heads at a time
    device = device_of()
    layer, table = cached(kv, [64, 330], 128, 32)
    positions, q = np.arange(180, 330, dtype=np.int32), normal(9, 150, 3, 96)
    k_b, v_b, k_up, v_up = matrices(device, 3, 64, 32, 128, transposed)
    expected = reference.mla_expanded(q, k_up, v_up, layer, table[1], positions, 0.09)
    arguments = q, k_b, v_b, layer, table[1], positions, 0.09, transposed
    close(expand(mla_expanded, device, *arguments), expected, 2e-3)
    close(expand(mla_expanded, device, *arguments, flash=False), expected, 2e-3)
    close(expand(mla_expanded_twin, Device.plain(), *arguments), expected, 1e-5)


def test_expanded_of_widths_that_no_tile_has() -> None:
    device = device_of()
    layer, table = cached("f16", [140], 96, 8)
    positions, q = ints(0, 1, 63, 64, 127, 128, 139), normal(10, 7, 2, 40)
    k_b, v_b, k_up, v_up = matrices(device, 2, 32, 24, 96, False)
    expected = reference.mla_expanded(q, k_up, v_up, layer, table[0], positions, 0.1)
    close(expand(mla_expanded, device, q, k_b, v_b, layer, table[0], positions, 0.1), expected, 2e-3)


@pytest.mark.parametrize("capability", [80, 89, HOPPER])
def test_expanded_reads_whole_tiles_of_what_is_there(capability: int, monkeypatch) -> None:
    """An odd number of pages, where a tile of keys is longer than a page: rows behind the last are zeros."""
    seen, attend = [], attention_expanded._attend_flash

    def look(device, q, keys, latents, values, *rest) -> None:
        seen.extend(map(len, (keys, latents, values)))
        assert not latents[140:].any() and not keys[140:].any() and not values[140:].any()
        attend(device, q, keys, latents, values, *rest)

    monkeypatch.setattr(attention_expanded, "_attend_flash", look)
    device = device_of(capability)
    layer, table = cached("f16", [140], 96, 8)
    positions, q = ints(0, 63, 139), normal(10, 3, 2, 40)
    k_b, v_b, k_up, v_up = matrices(device, 2, 32, 24, 96, False)
    expected = reference.mla_expanded(q, k_up, v_up, layer, table[0][:3], positions, 0.1)
    close(expand(mla_expanded, device, q, k_b, v_b, layer, table[0][:3], positions, 0.1), expected, 2e-3)
    keys = attention_expanded.choose_flash_tiling(capability).keys
    assert seen and all(length >= 192 and length % keys == 0 for length in seen)


def test_heads_in_groups_of_bounded_memory() -> None:
    assert attention_expanded._heads_at_a_time(128, 32768, 256) == 32
    assert attention_expanded._heads_at_a_time(128, 64, 256) == 128
    assert attention_expanded._heads_at_a_time(16, 10**7, 256) == 1


# ---- what the wrappers refuse ---------------------------------------------------------------------------------------


def test_nothing_in_nothing_out() -> None:
    device = device_of()
    layer, none = cache_layer(device, 1, "f16", 40), torch.zeros(0, dtype=torch.int32)
    table = torch.zeros((1, 1), dtype=torch.int32)
    q = torch.zeros((0, 4, 32)), torch.zeros((0, 4, 8))
    assert mla_absorbed(device, *q, layer, table, none, none, 1.0).shape == (0, 4, 32)
    k_b, v_b, *_ = matrices(device, 4, 32, 8, 32, False)
    assert mla_expanded(device, torch.zeros((0, 4, 40)), k_b, v_b, layer, table[0], none, 1.0).shape == (0, 4, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": torch.zeros(1, dtype=torch.int64)},
        {"positions": torch.zeros(2, dtype=torch.int32)},
        {"sequence": torch.zeros((1, 1), dtype=torch.int32)},
        {"table": torch.zeros(1, dtype=torch.int32)},
        {"q": torch.zeros((1, 4, 31))},
        {"q": torch.zeros((1, 4, 32), dtype=torch.float16)},
        {"q": torch.zeros((1, 4, 64))[:, :, ::2]},
        {"q": torch.zeros((1, 3, 32))},
        {"rotated": torch.zeros((1, 4, 9))},
        {"rotated": torch.zeros((1, 4, 16))[:, :, ::2]},
        {"layer": cache_layer(Device.plain(), 1, "q8_0", 64)},
    ],
)
def test_absorbed_refuses_what_does_not_fit(change: dict) -> None:
    device, zero = Device.plain(), torch.zeros(1, dtype=torch.int32)
    case = {
        "q": torch.zeros((1, 4, 32)),
        "rotated": torch.zeros((1, 4, 8)),
        "layer": cache_layer(device, 1, "f16", 40),
        "table": torch.zeros((1, 1), dtype=torch.int32),
        "sequence": zero,
        "positions": zero,
    } | change
    for verb in (mla_absorbed, mla_absorbed_twin):
        with pytest.raises(ValueError, match="mla_absorbed"):
            verb(device, *case.values(), 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"q": torch.zeros((2, 4, 32))},
        {"q": torch.zeros((2, 3, 40))},
        {"q": torch.zeros((2, 4, 40), dtype=torch.float16)},
        {"row": torch.zeros((1, 1), dtype=torch.int32)},
        {"positions": torch.zeros(3, dtype=torch.int32)},
        {"positions": torch.zeros(2, dtype=torch.int64)},
        {"layer": cache_layer(Device.plain(), 1, "f16", 48)},
    ],
)
def test_expanded_refuses_what_does_not_fit(change: dict) -> None:
    device = Device.plain()
    k_b, v_b, *_ = matrices(device, 4, 32, 8, 32, False)
    case = {
        "q": torch.zeros((2, 4, 40)),
        "k_b": k_b,
        "v_b": v_b,
        "layer": cache_layer(device, 1, "f16", 40),
        "row": torch.zeros(1, dtype=torch.int32),
        "positions": torch.zeros(2, dtype=torch.int32),
    } | change
    for verb in (mla_expanded, mla_expanded_twin):
        with pytest.raises(ValueError, match="mla_expanded"):
            verb(device, *case.values(), 1.0)
