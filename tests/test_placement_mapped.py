"""Weights of a mapped file are used as they are in it, which takes longer: by as much as was measured."""

from dataclasses import replace

import pytest

from placement import AttentionRate, LinearRate, Machine, Memory, Predictor, Processor, Settings
from placement.plan import Placed
from placement.presets import MODELS, build
from placement.rates import MAPPED, Rates

POINTS = ((1, 1e9), (8, 8e9))
ATTENTION = (AttentionRate("f16", 0.0, 1e30, 1e30, 1e30),)
MODEL = build("two layers", replace(MODELS["deepseek-v2-lite"], layers=2), "q8_0", bias=False)
PLACED = tuple(Placed(tensor.name, "node0", tensor.nbytes) for tensor in MODEL.tensors)


def machine(*more: LinearRate) -> Machine:
    linear = tuple(LinearRate("linear", type, size, 0.0, POINTS) for type, size in (("Q8_0", 1.0625), ("F32", 4.0)))
    cpu = Processor("cpu", "", 1, (*linear, *more), ATTENTION, ())
    return Machine(
        "m", True, (Memory("node0", "dram", 1 << 40, 1e30), Memory("disk", "disk", 1 << 50, 1e30)), (), (cpu,)
    )


def mapped(seconds: float) -> tuple[LinearRate, ...]:
    """All types, so many times as slow."""
    points = tuple((columns, flops / seconds) for columns, flops in POINTS)
    return tuple(LinearRate("mapped", type, size, 0.0, points) for type, size in (("Q8_0", 1.0625), ("F32", 4.0)))


def decode(there: Machine, **settings) -> float:
    return 1 / Predictor(MODEL, there, Settings(context=4096, **settings), PLACED).decode(0).tokens_per_second


def test_by_as_much_as_was_measured() -> None:
    there = machine(*mapped(3.0))
    assert decode(there, mmap=True) == pytest.approx(3 * decode(there))
    assert decode(there, mmap=False) == decode(there) == decode(machine())


def test_a_tensor_on_the_disk_is_mapped_too() -> None:
    there = machine(*mapped(3.0))
    on_disk = tuple(replace(one, place="disk") if "_exps" in one.name else one for one in PLACED)
    far = Predictor(MODEL, there, Settings(context=4096), on_disk)
    assert 1 / far.decode(0).tokens_per_second == pytest.approx(3 * decode(there))
    rearranged = Predictor(MODEL, there, Settings(context=4096), on_disk, rearranged=True)
    assert 1 / rearranged.decode(0).tokens_per_second == pytest.approx(decode(there))


def test_of_a_prompt_too() -> None:
    there, settings = machine(*mapped(3.0)), Settings(context=4096)
    here = Predictor(MODEL, there, settings, PLACED).prefill(64)
    file = Predictor(MODEL, there, replace(settings, mmap=True), PLACED).prefill(64)
    assert here.tokens_per_second == pytest.approx(3 * file.tokens_per_second)


def test_where_nobody_measured() -> None:
    rates = Rates(machine().cpu)
    assert [rates.mapped("Q8_0", columns) for columns, _ in MAPPED] == [factor for _, factor in MAPPED]
    assert rates.mapped("Q8_0", 1e6) == MAPPED[-1][1] and MAPPED[0][1] > rates.mapped("Q8_0", 4) > MAPPED[1][1]
    assert decode(machine(), mmap=True) == pytest.approx(MAPPED[0][1] * decode(machine()))
