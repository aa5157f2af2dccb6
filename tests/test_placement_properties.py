"""What must hold of every plan, whatever the model, the machine and the settings."""

import json
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from placement import DoesNotFit, Machine, Model, Plan, Settings, make_plan, replan
from placement.arrange import INTENSITY, Divider, dense_units, expert_bytes, node_shares
from placement.known_parts import Description, describe
from placement.presets import MODELS, build
from placement.quantization import QUANTIZATIONS

GIB = 1 << 30
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Of V3's widths, with fewer layers and experts."""
    layers, experts = draw(st.integers(2, 7)), draw(st.sampled_from([16, 48, 256]))
    dimensions = replace(
        MODELS["deepseek-v3"],
        layers=layers,
        dense_layers=draw(st.integers(0, layers)),
        experts=experts,
        experts_used=draw(st.integers(1, 8)),
    )
    return build("test", dimensions, draw(st.sampled_from(sorted(QUANTIZATIONS))), bias=True)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    sockets = draw(st.integers(1, 3))
    made = describe(
        Description(
            memory=draw(st.integers(5 * GIB, 80 * GIB)),
            memory_bandwidth=draw(st.floats(40e9, 600e9)),
            cores=draw(st.integers(4, 64)),
            sockets=sockets,
            gpu=draw(st.sampled_from([None, "rtx-3090", "rtx-5090"])),
            gpu_memory=draw(st.integers(2 * GIB, 40 * GIB)),
            pcie="4x16",
        )
    )
    uneven = [replace(m, bytes=draw(st.integers(m.bytes // 2, m.bytes))) for m in made.nodes]
    return replace(made, memories=(*(m for m in made.memories if m.kind != "dram"), *uneven))


wanted = st.builds(
    Settings,
    context=st.sampled_from([512, 4096, 40_000, 160_000]),
    sequences=st.integers(1, 3),
    kv=st.sampled_from(["f32", "f16", "q8_0"]),
    mmap=st.sampled_from([None, None, True, False]),
)


def plan_or_none(model: Model, machine: Machine, want: Settings) -> Plan | None:
    try:
        return make_plan(model, machine, want)
    except DoesNotFit:
        return None


@EXAMPLES
@given(models(), machines(), wanted)
def test_every_tensor_once_and_no_memory_exceeded(model: Model, machine: Machine, want: Settings) -> None:
    plan = plan_or_none(model, machine, want)
    if plan is None:
        return
    assert {name: sum(one.bytes for one in parts) for name, parts in plan.by_tensor.items()} == {
        tensor.name: tensor.nbytes for tensor in model.tensors
    }
    assert all(len({one.place for one in parts}) == len(parts) for parts in plan.by_tensor.values())
    for use, memory in zip(plan.memories, machine.memories, strict=True):
        held = sum(one.bytes for one in plan.tensors if one.place == memory.name)
        assert use.weight_bytes == held
        assert held + use.kv_bytes + use.buffer_bytes <= memory.bytes
    kv = {"f32": 2304, "f16": 1152, "q8_0": 612}[want.kv] * model.dimensions.layers
    assert want.context is not None
    assert sum(use.kv_bytes for use in plan.memories) == kv * -(-want.context // 64) * 64 * want.sequences
    assert all(speed.tokens_per_second <= speed.ceiling_tokens_per_second * (1 + 1e-9) for speed in plan.decode)


@EXAMPLES
@given(models(), machines(), wanted, st.integers(0, 2), st.integers(1, 30 * GIB))
def test_more_memory_is_never_worse(model: Model, machine: Machine, want: Settings, which: int, more: int) -> None:
    """In any one memory: VRAM, the first node, the last one."""
    memories = list(machine.memories)
    at = [i for i, memory in enumerate(memories) if memory.kind != "disk"]
    memories[at[which % len(at)]] = replace(
        memories[at[which % len(at)]], bytes=memories[at[which % len(at)]].bytes + more
    )
    less, plenty = (
        plan_or_none(model, machine, want),
        plan_or_none(model, replace(machine, memories=tuple(memories)), want),
    )
    if less is None:
        return
    assert plenty is not None
    for before, after in zip((*less.decode, *less.prefill), (*plenty.decode, *plenty.prefill), strict=True):
        assert after.tokens_per_second >= before.tokens_per_second * (1 - 1e-6)


@EXAMPLES
@given(models(), machines(), wanted)
def test_vram_is_filled_in_the_order_of_intensity(model: Model, machine: Machine, want: Settings) -> None:
    plan = plan_or_none(model, machine, want)
    there = next((use for use in plan.memories if use.name == "gpu0"), None) if plan else None
    if plan is None or there is None or not there.weight_bytes:
        return
    on_gpu = {one.name for one in plan.tensors if one.place == "gpu0"}
    dense = list(dense_units(model))
    assert [INTENSITY.index(unit.part) for unit in dense] == sorted(INTENSITY.index(unit.part) for unit in dense)
    whole = [all(tensor.name in on_gpu for tensor in unit.tensors) for unit in dense]
    assert whole == sorted(whole, reverse=True), "something of lower intensity went before something of higher"
    kv = there.kv_bytes // max(sum(u.has_cache and w for u, w in zip(dense, whole, strict=True)), 1)
    if not all(whole):
        first = dense[whole.index(False)]
        assert first.nbytes + first.has_cache * kv > there.free_bytes, "there was room for it"
        assert not any("_exps" in name for name in on_gpu)
        return
    for layer, size in expert_bytes(model).items():
        placed = [one for one in plan.by_tensor[f"blk.{layer}.ffn_gate_exps.weight"] if one.place == "gpu0"]
        if not placed or placed[0].experts is not None:
            assert size > there.free_bytes, "there was room for another expert"
            break


@EXAMPLES
@given(models(), machines(), wanted)
def test_a_plan_read_back_is_the_same(model: Model, machine: Machine, want: Settings) -> None:
    plan = plan_or_none(model, machine, want)
    if plan is not None:
        document = json.loads(json.dumps(plan.to_json()))
        assert Plan.from_json(document) == plan
        assert replan(document, model, machine) == plan


@EXAMPLES
@given(models(), machines(), wanted)
def test_the_context_that_is_named_fits_and_no_longer_one(model: Model, machine: Machine, want: Settings) -> None:
    try:
        make_plan(model, machine, want)
    except DoesNotFit as error:
        words = error.remedy.split()
        assert error.remedy, str(error)
        if "--context" in words:
            context = int(words[words.index("--context") + 2])
            make_plan(model, machine, replace(want, context=context))
            assert context < (want.context or 0)
            assert plan_or_none(model, machine, replace(want, context=context + 64)) is None


@EXAMPLES
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=5), st.data())
def test_bytes_are_divided_exactly(capacities: list[int], data: st.DataObject) -> None:
    needed = data.draw(st.integers(0, sum(capacities)))
    speeds = [data.draw(st.floats(1.0, 10.0)) for _ in capacities]
    shares = node_shares(needed, capacities, speeds)
    assert sum(shares) == needed and all(0 <= s <= c for s, c in zip(shares, capacities, strict=True))
    if all(needed * speed / sum(speeds) <= c for speed, c in zip(speeds, capacities, strict=True)):
        assert shares == pytest.approx([needed * speed / sum(speeds) for speed in speeds], abs=1)
    cut, taken = Divider(shares), [0] * len(shares)
    while needed:
        size = data.draw(st.integers(1, needed))
        parts = cut.take(size)
        assert sum(parts) == size and min(parts) >= 0
        taken = [a + b for a, b in zip(taken, parts, strict=True)]
        needed -= size
    assert taken == shares
