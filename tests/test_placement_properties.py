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


def must_be_in_memory(model: Model, want: Settings, threads: int) -> tuple[int, int]:
    """Of the cache, and at least of the rest, whatever is mapped: 512 MiB, threads, the activations of a chunk."""
    d, pages = model.dimensions, -(-(want.context or 0) // 64)
    row = {"f32": 2304, "f16": 1152, "q8_0": 612}[want.kv]
    residual = 4 * 4 * d.hidden_size * min(1024, want.context or 0)
    return row * d.layers * 64 * pages * want.sequences, (512 << 20) + threads * (4 << 20) + residual


@EXAMPLES
@given(models(), machines(), wanted, st.booleans(), st.booleans())
def test_mapped_weights_need_no_memory_but_the_cache_does(
    model: Model, machine: Machine, want: Settings, limited: bool, too_little: bool
) -> None:
    """On the CPU, with a disk for all weights: what is not weights decides, to the byte."""
    want = replace(want, mmap=True, device="cpu")
    cache, least = must_be_in_memory(model, want, machine.cpu.threads)
    plenty = with_memory(machine, 1 << 50)
    held = make_plan(model, plenty, want).memories
    kv, buffers = sum(use.kv_bytes for use in held), sum(use.buffer_bytes for use in held)
    assert kv == cache and least < buffers < 3 * GIB
    enough = cache + buffers - too_little
    small = with_memory(machine, (cache + buffers) * 4 if limited else enough)
    want = replace(want, memory=enough if limited else None)
    if too_little:
        with pytest.raises(DoesNotFit) as refused:
            make_plan(model, small, want)
        asked = f"the cache for {want.sequences} x {want.context} tokens in {want.kv} and working memory"
        assert refused.value.found == f"{asked} need {(cache + buffers) / GIB:.1f} GiB"
        assert refused.value.limit == f"{enough / GIB:.1f} GiB of DRAM may be used"
    else:
        plan = make_plan(model, small, want)
        assert plan.mode == "mmap" and all(
            use.weight_bytes == 0 for use in plan.memories if use.name.startswith("node")
        )
        assert sum(use.kv_bytes for use in plan.memories) == cache


def with_memory(machine: Machine, size: int) -> Machine:
    """One node of so many bytes of DRAM, and a disk for everything."""
    node, disk = machine.nodes[0], machine.disk
    assert disk is not None
    memories = (replace(node, bytes=size), replace(disk, bytes=1 << 50))
    others = tuple(memory for memory in machine.memories if memory.kind == "vram")
    return replace(machine, memories=(*others, *memories))


@EXAMPLES
@given(models(), machines(), wanted)
def test_cache_and_working_memory_are_planned_in_full(model: Model, machine: Machine, want: Settings) -> None:
    """Mapped or not, with a GPU or without, on any number of nodes."""
    plan = plan_or_none(model, machine, want)
    if plan is None:
        return
    cache, least = must_be_in_memory(model, want, plan.threads)
    memories = [use for use in plan.memories if use.name != "disk"]
    assert sum(use.kv_bytes for use in memories) == cache
    assert sum(use.buffer_bytes for use in memories) > least
    assert all(use.free_bytes >= 0 for use in memories)


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
