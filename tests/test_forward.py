"""Our forward pass against transformers in float64 and against llama.cpp, on f32 weights."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hetero
from tests.deviation import EXACT, agrees, median_token_error, worst
from tests.forward_runs import in_chunks, together, token_by_token
from tests.prompts import prompt

IDS = prompt(96)
LONG = prompt(330, seed=1)  # six pages; more tokens at once than absorbed attention is worth
ABSORBED, EXPANDED = 1_000_000, 0  # tokens of a sequence in a batch up to which attention stays absorbed


@pytest.fixture(scope="module")
def load():
    engines = []

    def open_engine(path, kv="f32"):
        engine, _ = hetero.load(path, hetero.RunConfig(kv=kv, context=512, threads=2))
        engines.append(engine)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def tiny(load, model_file):
    return load(model_file())


def test_prefill(tiny, model_file, reference, llama_cpp):
    logits = tiny.logits(IDS)
    assert logits.dtype == np.float32
    assert agrees(logits, reference(model_file(), IDS))
    assert agrees(logits, llama_cpp(model_file(), IDS))


def test_token_by_token(tiny, model_file, reference, llama_cpp):
    logits = token_by_token(tiny, IDS)
    assert agrees(logits, reference(model_file(), IDS))
    assert agrees(logits, llama_cpp(model_file(), IDS))


@settings(derandomize=True, max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, len(IDS) - 1), max_size=12))
def test_any_split_into_chunks(cuts, tiny, model_file, reference):
    assert agrees(in_chunks(tiny, IDS, cuts), reference(model_file(), IDS))


@pytest.mark.parametrize("limit", [ABSORBED, EXPANDED])
@pytest.mark.parametrize("cuts", [[], [64], [63, 65, 200], [1, 250]])
def test_long_prompt_in_either_form_of_attention(cuts, limit, tiny, model_file, reference, llama_cpp, monkeypatch):
    monkeypatch.setattr(tiny.model, "absorbed_limit", limit)
    logits = in_chunks(tiny, LONG, cuts)
    assert agrees(logits, reference(model_file(), LONG))
    assert agrees(logits, llama_cpp(model_file(), LONG))


def test_prefill_without_logits_caches_the_same(tiny, model_file, reference):
    tiny.forget()
    for start in range(0, 320, 80):
        assert tiny.forward(list(LONG[start : start + 80]), []) is None
    rest = tiny.forward(list(LONG[320:]), [0, 9])
    assert agrees(rest, reference(model_file(), LONG)[[320, 329]])


@pytest.mark.parametrize("shuffle", [None, 1, 2])
def test_several_sequences_in_one_batch(shuffle, tiny, model_file, reference):
    # the first is long enough for expanded attention in both batches, the others are not
    sequences = [prompt(400, seed=3), prompt(90, seed=4), prompt(7, seed=5), IDS]
    cuts = [190, 70, 3, 1]
    for ids, logits in zip(sequences, together(tiny, sequences, cuts, shuffle), strict=True):
        assert agrees(logits, reference(model_file(), ids))


@pytest.mark.parametrize("changes", [{"yarn_factor": 1.0}, {"kv_b_split": False}, {"experts_used": 1}])
@pytest.mark.parametrize("limit", [ABSORBED, EXPANDED])
def test_variants_of_v3(changes, limit, load, model_file, reference, llama_cpp, monkeypatch):
    path = model_file("tiny", **changes)
    engine = load(path)
    monkeypatch.setattr(engine.model, "absorbed_limit", limit)
    logits = engine.logits(IDS)
    assert agrees(logits, reference(path, IDS))
    assert agrees(logits, llama_cpp(path, IDS))


@pytest.mark.parametrize("shape", ["v2", "v2-ungrouped", "v2-lite", "moonlight"])
def test_v2_and_files_without_q_lora(shape, load, model_file, reference):
    path = model_file(shape)
    engine = load(path)
    assert agrees(engine.logits(IDS), reference(path, IDS))
    assert agrees(token_by_token(engine, IDS[:20]), reference(path, IDS)[:20])


def test_other_layouts_of_the_same_weights(tiny, load, model_file, tmp_path):
    logits = tiny.logits(IDS)
    assert np.array_equal(load(model_file(nextn_layers=1)).logits(IDS), logits)
    assert np.array_equal(load(model_file(split_tensors=10)).logits(IDS), logits)
    assert worst(load(model_file(kv_b_split=False)).logits(IDS), logits) < EXACT


def test_f16_cache_is_no_worse_than_llama_cpp(load, model_file, reference, llama_cpp):
    path = model_file()
    ours, theirs, exact = load(path, "f16").logits(IDS), llama_cpp(path, IDS, "f16"), reference(path, IDS)
    assert worst(ours, exact) <= worst(theirs, exact)
    assert median_token_error(ours, exact) <= median_token_error(theirs, exact)


def test_cache_types_cost_what_they_should(load, tiny, model_file, reference):
    exact = reference(model_file(), IDS)
    f32, f16, q8_0 = (
        median_token_error(engine.logits(IDS), exact)
        for engine in (tiny, load(model_file(), "f16"), load(model_file(), "q8_0"))
    )
    assert f32 < 1e-5 < f16 < 2e-3 < q8_0 < 6e-2


def test_the_cache_holds_576_values_instead_of_40960(tiny):
    v3 = dataclasses.replace(tiny.config, heads=128, layers=61)
    assert [layer.shape[1:] for layer in tiny.cache.layers] == [(64, 576)] * 3
    assert v3.heads * (v3.nope_dim + v3.rope.dimension + v3.value_dim) == 40_960
    assert v3.cache_bytes_per_token("f16") == 61 * 576 * 2 == 70_272
