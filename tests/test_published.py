"""Speeds that others published: of which machines they are, and where they are from."""

from dataclasses import replace

import pytest

from placement import Description, InvalidDocument, describe
from placement.known_parts import GPUS
from placement.presets import canonical
from placement.published import PUBLISHED, published

GIB = 1 << 30
BOX = Description(memory=1024 * GIB, socket="xeon-sapphire-rapids", sockets=2, gpu="rtx-4090d")


def test_every_figure_says_whose_it_is() -> None:
    for one in PUBLISHED:
        assert ":".join(canonical(one.model)) == one.model and one.gpu in GPUS
        assert one.decode > 0 and one.memory > 96 * GIB
        assert one.source.startswith("https://") == bool(one.when), "a source has a date, or neither is known"
        assert type(one).from_json(one.to_json()) == one


def test_the_box_of_the_tutorial() -> None:
    """https://github.com/kvcache-ai/ktransformers/blob/main/doc/en/DeepseekR1_V3_tutorial.md, 8 experts, V0.2"""
    (one,) = published("deepseek-v3:q4_k_m", describe(BOX))
    assert (one.decode, one.prefill, one.prompt_tokens) == (12.208, 82.94, 500)
    assert str(one).startswith("published: 12.2 tok/s decode, 82.9 tok/s prefill of 500 tokens (KTransformers 0.2; 2 x")
    (half,) = published("deepseek-v3:q4_k_m", describe(replace(BOX, memory=512 * GIB, sockets=1)))
    assert half.decode == 8.73


@pytest.mark.parametrize("name", ["deepseek-v3:q4_k_m", "DeepSeek-R1:Q4_K_M", "deepseek-v3.1:q4_k_m"])
def test_models_of_one_shape(name: str) -> None:
    assert len(published(name, describe(BOX))) == 1


def test_other_machines_and_models_have_none() -> None:
    for change in ({"gpu": None}, {"gpu": "h200"}, {"memory": 760 * GIB}, {"memory": 1300 * GIB}):
        assert published("deepseek-v3:q4_k_m", describe(replace(BOX, **change))) == ()
    for name in ("deepseek-v3:q8_0", "a file's name", "", ":"):
        assert published(name, describe(BOX)) == ()


def test_the_nearest_comes_first() -> None:
    """One socket of 200 GB before two of 256 GiB, which differ by less than a quarter."""
    machine = describe(Description(memory=220 * GIB, gpu="rtx-3090", socket="epyc-milan"))
    assert [one.sockets for one in published("deepseek-v3:ud-q2_k_xl", machine)] == [1, 2]
    two = describe(Description(memory=220 * GIB, gpu="rtx-3090", socket="epyc-milan", sockets=2))
    assert [one.sockets for one in published("deepseek-v3:ud-q2_k_xl", two)] == [2, 1]


def test_figures_are_checked() -> None:
    with pytest.raises(InvalidDocument, match=r"Published\.decode = -1"):
        replace(PUBLISHED[0], decode=-1.0)
