"""Bytes and FLOP of a model's parts against numbers published or counted by hand; rates between the points measured."""

from dataclasses import replace
from math import comb

import pytest

from placement.cost import (
    absorbed_flops,
    absorbed_limit,
    cache_layer_bytes,
    cache_row_bytes,
    column_shares,
    decode_bytes,
    expanded_flops,
    pairs,
    part_bytes,
    part_flops,
    touched_share,
)
from placement.machine import AttentionRate, LinearRate, Processor, VerbRate
from placement.model import PARTS
from placement.presets import MODELS, build, preset
from placement.rates import Rates, expert_seconds, flop_seconds

V3, LITE = MODELS["deepseek-v3"], MODELS["deepseek-v2-lite"]


@pytest.fixture(scope="module")
def v3():
    return preset("deepseek-v3:q4_k_m")


def test_active_parameters(v3) -> None:
    """37B of its 671B (arXiv 2412.19437, abstract), two FLOP each but for the embedding, which is not multiplied."""
    assert part_flops(v3, "routed experts", 1) == 2 * 58 * 8 * 3 * 7168 * 2048
    multiplied = sum(part_flops(v3, part, 1) for part in PARTS) / 2
    assert multiplied + V3.vocab_size * V3.hidden_size == pytest.approx(37.5e9, rel=0.01)
    assert all(part_flops(v3, part, 512) == 512 * part_flops(v3, part, 1) for part in PARTS)


def test_bytes(v3) -> None:
    """About 394 GB of experts, 12.3 GB of them a token, 9.9 GB of other weights."""
    assert sum(part_bytes(v3, part) for part in PARTS) == v3.nbytes
    assert part_bytes(v3, "routed experts") == pytest.approx(394e9, rel=0.01)
    assert decode_bytes(v3, "routed experts") == pytest.approx(12.3e9, rel=0.01)
    dense = ("mla", "shared expert", "dense ffn", "head", "router", "norms")
    assert sum(decode_bytes(v3, part) for part in dense) == pytest.approx(9.9e9, rel=0.02)
    assert decode_bytes(v3, "embedding") == part_bytes(v3, "embedding") // V3.vocab_size


def test_a_tied_head_is_the_embedding_once_more() -> None:
    model = build("tied", replace(LITE, layers=2), "q8_0", bias=False)
    tied = replace(model, tensors=tuple(t for t in model.tensors if t.name != "output.weight"))
    assert tied.tied and not model.tied
    assert decode_bytes(tied, "head") == part_bytes(tied, "embedding")
    assert part_flops(tied, "head", 3) == part_flops(model, "head", 3) > 0


@pytest.mark.parametrize("tokens, share", [(1, 8 / 256), (32, 0.64), (128, 0.98)])
def test_touched_experts(tokens: int, share: float) -> None:
    assert touched_share(8 / 256, tokens) == pytest.approx(share, abs=0.005)
    shares = column_shares(tokens, 8 / 256)
    assert 1 - shares[0] == pytest.approx(touched_share(8 / 256, tokens))
    assert sum(shares.values()) == pytest.approx(1)
    assert sum(c * share for c, share in shares.items()) == pytest.approx(tokens * 8 / 256)
    assert shares[1] == pytest.approx(comb(tokens, 1) * (1 / 32) * (31 / 32) ** (tokens - 1))


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.5, 0.97, 1 - 1e-7, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("tokens", [1, 7, 48, 400])
def test_shares_are_a_whole(probability: float, tokens: int) -> None:
    """Also where none, or all, of (1 - p)^T is left."""
    shares = column_shares(tokens, probability)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-9)
    assert sum(c * share for c, share in shares.items()) == pytest.approx(tokens * probability, abs=1e-6)
    flat = replace(RATE, flops_at=((1, 1.0),))
    assert expert_seconds(flat, tokens, probability) == pytest.approx(tokens * probability, abs=1e-6)


def test_a_cache_row() -> None:
    assert V3.layers * cache_row_bytes(V3, "f16") == 70_272
    assert [cache_row_bytes(V3, kv) for kv in ("f32", "f16", "q8_0")] == [2304, 1152, 612]
    assert cache_layer_bytes(V3, "f16", 65, 2) == 2 * 128 * 1152  # whole pages


def test_attention() -> None:
    """By hand: 128 heads, scores over 576, sums over 512; expanded 192 and 128, and 2 x 512 x 256 for each token."""
    assert pairs(3, 10) == 11 + 12 + 13
    assert absorbed_flops(V3, 1, 0) == 128 * (2 * 576 + 2 * 512)
    assert absorbed_flops(V3, 3, 10) == 36 * 128 * 2176
    assert expanded_flops(V3, 3, 10) == 128 * (13 * 2 * 512 * 256 + 36 * 2 * (192 + 128))
    # 242 FLOP for each cache byte of a single token, as docs/performance.md has it
    assert absorbed_flops(V3, 1, 4095) / (4096 * cache_row_bytes(V3, "f16")) == pytest.approx(242, abs=1)


def test_the_limit_of_absorbed_attention_is_the_runtime_s() -> None:
    from hetero.attention import absorbed_limit as of_the_runtime
    from hetero.config import ModelConfig, RopeConfig

    for d in (V3, replace(V3, kv_lora_rank=256, nope_dim=64, value_dim=64, heads=4)):
        config = object.__new__(ModelConfig)
        for name in ("nope_dim", "value_dim", "kv_lora_rank"):
            object.__setattr__(config, name, getattr(d, name))
        object.__setattr__(config, "rope", RopeConfig(d.rope_dim, 1e4))
        assert absorbed_limit(d) == of_the_runtime(config)


def test_the_runtime_s_numbers_are_copied_right() -> None:
    from cpu_kernels.cache import PAGE
    from hetero.engine import CHUNK
    from hetero.hybrid import HALVES_FROM
    from placement import cost

    assert (cost.PAGE, cost.CHUNK, cost.HALVES_FROM) == (PAGE, CHUNK, HALVES_FROM)


RATE = LinearRate("linear", "Q4_K", 0.5625, 1e-6, ((1, 2e10), (2, 4e10), (4, 6e10), (16, 1.6e11)))


def test_seconds_of_a_flop() -> None:
    assert flop_seconds(RATE, 0) == 0
    for columns, flops in RATE.flops_at:
        assert flop_seconds(RATE, columns) == pytest.approx(columns / flops)
    assert flop_seconds(RATE, 3) == pytest.approx((flop_seconds(RATE, 2) + flop_seconds(RATE, 4)) / 2)
    assert flop_seconds(RATE, 160) == pytest.approx(160 / 1.6e11)


def test_experts_are_weighted_by_how_many_tokens_choose_them() -> None:
    want = sum(comb(9, c) * 0.25**c * 0.75 ** (9 - c) * flop_seconds(RATE, c) for c in range(10))
    assert expert_seconds(RATE, 9, 0.25) == pytest.approx(want, rel=1e-6)
    assert expert_seconds(RATE, 1, 0.25) == pytest.approx(0.25 * flop_seconds(RATE, 1))
    assert expert_seconds(RATE, 6, 1.0) == pytest.approx(flop_seconds(RATE, 6))
    few, many = expert_seconds(RATE, 190, 0.25), expert_seconds(RATE, 200, 0.25)
    assert many == pytest.approx(few * 200 / 190, rel=0.01)  # across the change to the mean


def test_rates_that_were_not_measured() -> None:
    """The type, then the verb; of a larger type, longer."""
    experts = replace(RATE, verb="experts", flops_at=((1, 1e10),))
    q8 = LinearRate("linear", "Q8_0", 1.0625, 1e-6, ((1, 1e10),))
    attention, verbs = (AttentionRate("f16", 1e-6, 1e10, 2e10, 4e10),), (VerbRate("rope", 1e-6, 1e-9),)
    rates = Rates(Processor("cpu", "", 1, (RATE, experts, q8), attention, verbs))
    assert rates.linear("experts", "Q4_K", 0.5625) is experts
    assert rates.linear("heads", "Q4_K", 0.5625) is RATE
    assert rates.linear("experts", "Q8_0", 1.0625) is q8
    assert rates.linear("linear", "F32", 4.0).flops_at == ((1, 1e10 * 1.0625 / 4),)
    assert rates.linear("linear", "Q3_K", 0.43).flops_at == RATE.flops_at
    assert rates.verb_seconds("rope", 2, 10) == pytest.approx(2e-6 + 1e-8)
    assert rates.verb_seconds("embed", 2, 10) == 0
    limit = absorbed_limit(V3)
    assert rates.attention_seconds(V3, "q8_0", 1, 99) == pytest.approx(1e-6 + absorbed_flops(V3, 1, 99) / 1e10)
    assert rates.attention_seconds(V3, "f16", limit, 99) == pytest.approx(1e-6 + absorbed_flops(V3, limit, 99) / 2e10)
    last = rates.attention_seconds(V3, "f16", limit + 1, 99)
    assert last == pytest.approx(1e-6 + expanded_flops(V3, limit + 1, 99) / 4e10)
