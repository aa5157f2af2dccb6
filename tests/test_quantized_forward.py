"""Quantized weights: no more error per token than llama.cpp's own. Reference: transformers on the dequantized weights.

Both round activations to 8 bits, so neither is exact; the median leaves out tokens whose near-tied expert flips.
Two engines that round alike still differ by 10 % in the median of one prompt, 4 % over six.
"""

from collections.abc import Sequence

import numpy as np
import pytest

import hetero
from tests.deviation import median_token_error
from tests.forward_runs import token_by_token
from tests.model_files import TYPES
from tests.prompts import prompt

# One of each kind: plain numbers, codes with one scale, of 3, 4 and 6 bits with scales of scales, a table. The others,
# whose kernels tests/test_formats.py holds to float64: pytest -m soak
SHORT = ("F16", "Q8_0", "Q4_0", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS")
PROMPTS = [prompt(96, seed) for seed in range(6)]
# f32 summation order alone moves the median this far: below it "no worse than" has no meaning
ROUNDING = 2e-6


def assert_no_worse_than_llama_cpp(path, reference, llama_cpp):
    exact = np.concatenate([reference(path, ids) for ids in PROMPTS])
    theirs = median_token_error(np.concatenate([llama_cpp(path, ids) for ids in PROMPTS]), exact)
    engine, _ = hetero.load(path, hetero.RunConfig(kv="f32", context=128, threads=2))
    try:
        absorbed = [engine.logits(ids) for ids in PROMPTS]
        # other kernels, so other roundings; how far they lie apart is less noisy than either's error over one prompt
        apart = median_token_error(token_by_token(engine, PROMPTS[0]), absorbed[0])
        engine.model.absorbed_limit = 0
        expanded = [engine.logits(ids) for ids in PROMPTS]
    finally:
        engine.close()
    ours = [median_token_error(np.concatenate(logits), exact) for logits in (absorbed, expanded)]
    print(f"median error per token: absorbed {ours[0]:.2e}, expanded {ours[1]:.2e}, llama.cpp {theirs:.2e}")
    print(f"token by token against all at once: {apart:.2e}")
    assert max(ours) <= max(1.1 * theirs, ROUNDING)
    assert apart <= max(theirs, ROUNDING)


def soak_but(short: Sequence[str], types: Sequence[str]) -> list:
    return [pytest.param(type, marks=() if type in short else pytest.mark.soak) for type in types]


@pytest.mark.parametrize("type", soak_but(SHORT, TYPES))
def test_every_type(type, model_file, reference, llama_cpp):
    assert_no_worse_than_llama_cpp(model_file("tiny", type), reference, llama_cpp)


@pytest.mark.parametrize("type", soak_but(["Q4_K"], ["Q8_0", "Q4_K", "Q6_K"]))
def test_unsplit_kv_b(type, model_file, reference, llama_cpp):
    assert_no_worse_than_llama_cpp(model_file("tiny", type, kv_b_split=False), reference, llama_cpp)


@pytest.mark.parametrize("type", soak_but(["Q6_K", "Q4_K_M"], ["Q4_K", "Q6_K", "IQ4_XS", "Q4_K_M"]))
def test_long_rows_and_fallback_types(type, model_file, reference, llama_cpp):
    assert_no_worse_than_llama_cpp(model_file("wide", type), reference, llama_cpp)
