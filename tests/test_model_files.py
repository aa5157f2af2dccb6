"""The files under the other tests: reproducible, and with the statistics they claim."""

import gguf
import numpy as np
import pytest

from tests.model_files import write
from tests.model_shapes import SHAPES
from tests.random_blocks import FILL, random_blocks


@pytest.mark.parametrize("type", FILL)
def test_random_blocks_have_the_deviation_asked_for(type):
    chunks = list(random_blocks(np.random.default_rng(0), type, 1 << 18, std=0.02))
    values = gguf.quants.dequantize(np.concatenate(chunks), type)
    assert values.size == 1 << 18
    assert np.std(values) == pytest.approx(0.02, rel=0.02)
    assert abs(np.mean(values)) < 0.02 / 50


def test_same_seed_same_bytes(tmp_path):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        write(tmp_path / name, SHAPES["v2-lite"], "Q8_0", seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
