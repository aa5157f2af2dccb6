"""What must hold of every plan, whatever the model, the machine and the settings."""

import json
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from placement import (
    AttentionRate,
    DoesNotFit,
    LinearRate,
    Link,
    Machine,
    Memory,
    Model,
    Plan,
    Processor,
    Settings,
    VerbRate,
    make_plan,
    replan,
)
from placement.arrange import INTENSITY, Divider, dense_units, expert_bytes, node_shares
from placement.known_parts import Description, describe
from placement.planner import job_seconds
from placement.presets import MODELS, build
from placement.quantization import BLOCKS, QUANTIZATIONS

GIB = 1 << 30
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Of V3's widths, with fewer layers and experts; also one layer, queries without latents, a tied head, and W_uk and
    W_uv in one matrix."""
    layers, experts = draw(st.integers(1, 7)), draw(st.sampled_from([16, 48, 256]))
    dimensions = replace(
        MODELS["deepseek-v3"],
        layers=layers,
        dense_layers=draw(st.integers(0, layers)),
        experts=experts,
        experts_used=draw(st.integers(1, 8)),
        q_lora_rank=draw(st.sampled_from([1536, 1536, 0])),
    )
    name, split = draw(st.sampled_from(sorted(QUANTIZATIONS))), draw(st.booleans())
    made = build("test", dimensions, name, bias=True, kv_b_split=split)
    if draw(st.sampled_from([False, False, True])):
        made = replace(made, tensors=tuple(tensor for tensor in made.tensors if tensor.name != "output.weight"))
    return made


@st.composite
def described(draw: st.DrawFn) -> Machine:
    made = describe(
        Description(
            memory=draw(st.integers(5 * GIB, 80 * GIB)),
            memory_bandwidth=draw(st.floats(40e9, 600e9)),
            cores=draw(st.integers(4, 64)),
            sockets=draw(st.integers(1, 3)),
            gpu=draw(st.sampled_from([None, "rtx-3090", "rtx-5090", "a6000", "h200"])),
            gpu_memory=draw(st.one_of(st.none(), st.integers(2 * GIB, 40 * GIB))),
            pcie="4x16",
        )
    )
    uneven = [replace(m, bytes=draw(st.integers(m.bytes // 2, m.bytes))) for m in made.nodes]
    return replace(made, memories=(*(m for m in made.memories if m.kind != "dram"), *uneven))


@st.composite
def processors(draw: st.DrawFn, name: str, flops: float) -> Processor:
    """Rates with the noise of a measurement, of some types and verbs only."""

    def rate(factor: float = 1.0) -> float:
        return flops * factor * draw(st.floats(0.7, 1.4))

    linear = {}
    for kind in draw(st.lists(st.sampled_from(["Q4_K", "Q6_K", "Q8_0", "F32"]), min_size=1, unique=True)):
        values, size = BLOCKS[kind]
        for verb in ("linear", *draw(st.sampled_from([(), ("experts",), ("heads", "experts")]))):
            points = tuple((columns, rate(gain)) for columns, gain in ((1, 1.0), (4, 2.0), (64, 4.0)))
            linear[verb, kind] = LinearRate(verb, kind, size / values, draw(st.floats(0, 1e-5)), points)
    attention = tuple(
        AttentionRate(kv, draw(st.floats(0, 1e-5)), rate(), rate(), rate())
        for kv in draw(st.sampled_from([("f16",), ("f32", "f16", "q8_0")]))
    )
    verbs = tuple(VerbRate(verb, draw(st.floats(0, 1e-5)), 1e-10) for verb in ("rms_norm", "rope", "route", "pass"))
    return Processor(name, "", draw(st.integers(4, 64)), tuple(linear.values()), attention, verbs)


@st.composite
def measured(draw: st.DrawFn) -> Machine:
    """Whatever a probe may find: nodes of different sizes and speeds, a GPU that is faster, a disk or none."""
    nodes = [
        Memory(f"node{i}", "dram", draw(st.integers(2 * GIB, 60 * GIB)), draw(st.floats(10e9, 300e9)))
        for i in range(draw(st.integers(1, 3)))
    ]
    disk = [Memory("disk", "disk", 4 << 40, draw(st.floats(3e8, 1e10)))] if draw(st.booleans()) else []
    cpu = draw(processors("cpu", draw(st.floats(5e10, 1e12))))
    if draw(st.booleans()):
        return Machine("measured", True, (*nodes, *disk), (), (cpu,))
    vram = Memory("gpu0", "vram", draw(st.integers(2 * GIB, 48 * GIB)), draw(st.floats(5e11, 4e12)))
    link = Link("gpu0", *(draw(st.floats(5e9, 5e10)) for _ in range(4)), draw(st.floats(1e-6, 2e-5)))
    gpu = draw(processors("gpu0", draw(st.floats(1e13, 1e14))))
    return Machine("measured", True, (vram, *nodes, *disk), (link,), (cpu, gpu))


def machines() -> st.SearchStrategy[Machine]:
    return st.one_of(described(), measured())


wanted = st.builds(
    Settings,
    context=st.sampled_from([1, 512, 4096, 40_000, 160_000]),
    sequences=st.integers(1, 3),
    kv=st.sampled_from(["f32", "f16", "q8_0"]),
    threads=st.sampled_from([None, None, 1, 4]),
    memory=st.one_of(st.none(), st.none(), st.integers(2 * GIB, 80 * GIB)),
    gpu_memory=st.one_of(st.none(), st.none(), st.integers(2 * GIB, 40 * GIB)),
    mmap=st.sampled_from([None, None, True, False]),
)


def counted(model: Model, data: st.DataObject) -> tuple[tuple[int, ...], ...] | None:
    """What 1,000 tokens may have chosen: a few experts of each layer three times as often as the others."""
    if data.draw(st.booleans()):
        return None
    d, often = model.dimensions, data.draw(st.integers(1, 10))
    if d.experts < 3 * d.experts_used:
        return None
    row = tuple(300 if expert < often else 100 for expert in range(d.experts))
    return (row,) * len(model.routed_by_layer)


def plan_or_none(model: Model, machine: Machine, want: Settings) -> Plan | None:
    try:
        return make_plan(model, machine, want)
    except DoesNotFit:
        return None


@EXAMPLES
@given(models(), machines(), wanted, st.sampled_from([None, None, 0, 7]), st.data())
def test_every_tensor_once_and_no_memory_exceeded(
    model: Model, machine: Machine, want: Settings, experts: int | None, data: st.DataObject
) -> None:
    experts = experts if model.routed_by_layer else None
    want = replace(want, expert_counts=counted(model, data), gpu_experts=experts if machine.vram else None)
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
    want = replace(want, mmap=True, device="cpu", memory=None)
    cache, least = must_be_in_memory(model, want, want.threads or machine.cpu.threads)
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
    node = replace(machine.nodes[0], bytes=size)
    gpu = tuple(memory for memory in machine.memories if memory.kind == "vram")
    return replace(machine, memories=(*gpu, node, Memory("disk", "disk", 1 << 50, 1e9)))


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
@given(models(), machines(), wanted, st.sampled_from(["vram", "dram", "node"]), st.floats(1, 20), st.data())
def test_more_memory_is_never_worse(
    model: Model, machine: Machine, want: Settings, grows: str, factor: float, data: st.DataObject
) -> None:
    """VRAM, all nodes, or one: what fitted fits, and the job by which plans are compared takes no longer."""
    want = replace(want, expert_counts=counted(model, data))
    less = plan_or_none(model, machine, want)
    if less is None:
        return
    grown = {memory.name for memory in machine.memories if memory.kind == grows} or {"node0"}
    memories = [replace(m, bytes=int(m.bytes * factor)) if m.name in grown else m for m in machine.memories]
    plenty = plan_or_none(model, replace(machine, memories=tuple(memories)), want)
    assert plenty is not None
    assert job_seconds(plenty) <= job_seconds(less) * (1 + 1e-6)


def test_a_gpu_is_left_alone_where_dram_is_short_beside_it() -> None:
    """Passes are longer with a GPU: their activations may be what does not fit."""
    model = build("test", replace(MODELS["deepseek-v3"], layers=4, dense_layers=2, experts=16), "q4_k_m", bias=True)
    machine, want = describe(SMALL_GPU), Settings(4096)
    alone = make_plan(model, machine, replace(want, device="cpu", mmap=True))
    held = sum(use.kv_bytes + use.buffer_bytes for use in alone.memories)
    want = replace(want, memory=held, mmap=True)
    with pytest.raises(DoesNotFit):
        make_plan(model, machine, replace(want, device="cuda"))
    plan = make_plan(model, machine, want)
    assert not uses_gpu(plan) and plan.settings.device == "auto"
    with pytest.raises(DoesNotFit, match=r"working memory need .* lower --context"):
        make_plan(model, machine, replace(want, memory=held - 1))


def uses_gpu(plan: Plan) -> bool:
    return any(one.place == "gpu0" for one in plan.tensors)


SMALL_GPU = Description(memory=300 * GIB, memory_bandwidth=200e9, cores=32, gpu="rtx-3090", pcie="4x16")


def test_vram_is_filled_in_the_order_of_intensity() -> None:
    """With VRAM for some of the dense parts, and for all and some experts."""
    seen = set()

    @EXAMPLES
    @given(models(), st.integers(13 * GIB // 10, 8 * GIB), st.sampled_from([512, 4096, 40_000]))
    def check(model: Model, size: int, context: int) -> None:
        plan = plan_or_none(model, describe(replace(SMALL_GPU, gpu_memory=size)), Settings(context, device="cuda"))
        if plan is not None:
            seen.add(in_order(model, plan))

    check()
    assert seen == {False, True}, "VRAM with room for all dense parts, and without"


def in_order(model: Model, plan: Plan) -> bool:
    """Whether all dense parts are on the GPU."""
    there = plan.memories[0]
    on_gpu = {one.name for one in plan.tensors if one.place == "gpu0"}
    dense = list(dense_units(model))
    order = [INTENSITY.index(unit.part) for unit in dense]
    assert order == sorted(order)
    whole = [all(tensor.name in on_gpu for tensor in unit.tensors) for unit in dense]
    assert whole == sorted(whole, reverse=True), "something of lower intensity went before something of higher"
    assert all(whole) or not any("_exps" in name for name in on_gpu)
    kv = there.kv_bytes // max(sum(u.has_cache and w for u, w in zip(dense, whole, strict=True)), 1)
    if not all(whole):
        first = dense[whole.index(False)]
        assert first.nbytes + first.has_cache * kv > there.free_bytes, "there was room for it"
        return False
    for layer, size in expert_bytes(model).items():
        placed = [one for one in plan.by_tensor[f"blk.{layer}.ffn_gate_exps.weight"] if one.place == "gpu0"]
        if not placed or placed[0].experts is not None:
            assert size > there.free_bytes, "there was room for another expert"
            break
    return True


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
