"""The oracles agree with each other, and a fault in one of them shows: they prove something about a third party."""

import numpy as np
import pytest
import torch

from tests.deviation import worst
from tests.llama_engine import LlamaCpp
from tests.oracles import Transformers, transformers_v3
from tests.prompts import prompt

IDS = prompt(96)
AGREE = 1e-5

# llama.cpp scores groups by two experts whatever the gating, so it cannot confirm a grouped V2 file
CONFIRMED = [
    ("tiny", {}),
    ("tiny", {"yarn_factor": 1.0}),
    ("tiny", {"kv_b_split": False}),
    ("tiny", {"nextn_layers": 1}),
]
CONFIRMED += [("v2-ungrouped", {}), ("v2-lite", {}), ("moonlight", {})]


@pytest.mark.parametrize(("shape", "changes"), CONFIRMED)
def test_transformers_and_llama_cpp_agree(shape, changes, model_file, reference, llama_cpp):
    path = model_file(shape, **changes)
    assert worst(llama_cpp(path, IDS), reference(path, IDS)) <= AGREE


def test_llama_cpp_agrees_token_by_token(model_file, reference):
    path = model_file()
    with LlamaCpp(path) as model:
        steps = np.concatenate([model.eval([id]) for id in IDS])
        model.forget()
        assert worst(model.eval(IDS), reference(path, IDS)) <= AGREE
    assert worst(steps, reference(path, IDS)) <= AGREE


def test_layouts_of_the_same_weights_are_the_same_model(model_file, reference):
    split = reference(model_file(), IDS)
    assert np.array_equal(reference(model_file(kv_b_split=False), IDS), split)
    assert np.array_equal(reference(model_file(nextn_layers=1), IDS), split)


def gates(model):
    return [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]


def rope_not_interleaved(model):
    model.config.rope_interleave = False


def no_mscale(model):
    for layer in model.model.layers:
        layer.self_attn.scaling = layer.self_attn.qk_head_dim**-0.5


def no_yarn_frequencies(model):
    dim, base = model.config.qk_rope_head_dim, model.config.rope_parameters["rope_theta"]
    model.model.rotary_emb.inv_freq = base ** (-torch.arange(0, dim, 2) / dim)


def no_group_limit(model):
    for gate in gates(model):
        gate.num_group = gate.topk_group = 1


def no_expert_bias(model):
    for gate in gates(model):
        gate.e_score_correction_bias.zero_()


def no_normalisation(model):
    for gate in gates(model):
        gate.norm_topk_prob = False


FAULTS = [rope_not_interleaved, no_mscale, no_yarn_frequencies, no_group_limit, no_expert_bias, no_normalisation]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_reference_shows(fault, model_file, llama_cpp):
    path = model_file()
    broken: Transformers = transformers_v3(path)
    fault(broken.model)
    assert worst(llama_cpp(path, IDS), broken(IDS)) > 0.1
