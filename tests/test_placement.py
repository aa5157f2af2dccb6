"""make_plan for machines that people have, beside published figures; what is refused, and what would fit instead."""

import tracemalloc
from dataclasses import replace

import pytest

from placement import (
    AttentionRate,
    Description,
    DoesNotFit,
    InvalidDocument,
    LinearRate,
    Link,
    Machine,
    Memory,
    PlacementError,
    Processor,
    Settings,
    VerbRate,
    describe,
    make_plan,
    preset,
)
from placement.cost import activation_bytes
from placement.known_parts import GPUS, SOCKETS
from placement.planner import job_seconds
from placement.presets import MODELS, build

GIB = 1 << 30
# KTransformers' box (https://github.com/kvcache-ai/ktransformers/blob/main/doc/en/DeepseekR1_V3_tutorial.md)
BOX = describe(Description(memory=1 << 40, gpu="rtx-4090d", socket="xeon-sapphire-rapids", sockets=2))


@pytest.fixture(scope="module")
def v3():
    return preset("deepseek-v3:q4_k_m")


def on_gpu(plan) -> dict[str, int]:
    return {one.name: one.bytes for one in plan.tensors if one.place == "gpu0"}


def dense(model) -> set[str]:
    parts = ("mla", "shared expert", "dense ffn", "head", "router", "norms")
    return {tensor.name for part in parts for tensor in model.by_part[part]}


def test_the_published_box(v3) -> None:
    plan = make_plan(v3, BOX, Settings(context=32768))
    there = on_gpu(plan)
    assert dense(v3) <= there.keys() and plan.mode == "resident" and plan.fits
    experts = sum(size for name, size in there.items() if "_exps" in name)
    assert 10.5e9 < experts < 12.5e9
    vram = plan.memories[0]
    assert vram.kv_bytes == 61 * 32768 * 1152 and 0 <= vram.free_bytes < 30e6  # less than an expert is left
    nodes = [use for use in plan.memories if use.name.startswith("node")]
    assert len(nodes) == 2 and abs(nodes[0].weight_bytes - nodes[1].weight_bytes) <= 1000
    assert [speed.depth for speed in plan.decode] == [0, 4096, 32767]
    assert plan.decode_ceiling_tokens_per_second == plan.decode[0].ceiling_tokens_per_second
    assert plan.decode[0].ceiling_tokens_per_second == pytest.approx(33.5, rel=0.05)
    assert plan.decode[2].ceiling_tokens_per_second == pytest.approx(31.1, rel=0.05)
    assert plan.decode[0].bound_by == "dram bandwidth"


def test_the_ceiling_counts_bytes_over_bandwidth(v3) -> None:
    """With all experts in DRAM: 12.3 GB / 614.4 GB/s + 9.9 GB / 1008 GB/s."""
    plan = make_plan(v3, BOX, Settings(context=32768, gpu_experts=0))
    routed = sum(t.nbytes for t in v3.by_part["routed experts"]) * 8 / 256
    rest = sum(t.nbytes for t in v3.tensors if t.name in dense(v3) and len(t.shape) > 1)
    for speed in plan.decode:
        seconds = routed / 614.4e9 + (rest + speed.depth * 70_272) / 1008e9
        assert speed.ceiling_tokens_per_second == pytest.approx(1 / seconds, rel=1e-6)
    shared = sum(t.nbytes for t in v3.by_part["shared expert"])
    seconds = routed / 614.4e9 + (rest - shared) / 1008e9
    assert plan.decode[0].overlapped_ceiling_tokens_per_second == pytest.approx(1 / seconds, rel=1e-6)
    assert plan.decode[0].overlapped_ceiling_tokens_per_second == pytest.approx(35.3, rel=0.02)


def test_14_gib_of_vram_at_8k(v3) -> None:
    plan = make_plan(v3, BOX, Settings(context=8192, gpu_memory=14 * GIB))
    assert dense(v3) <= on_gpu(plan).keys()
    assert plan.memories[0].bytes == 14 * GIB


def test_more_than_memory_comes_from_the_disk() -> None:
    """211 GiB on a 3090 and 200 GB."""
    model = preset("deepseek-v3:ud-q2_k_xl")
    machine = describe(Description(memory=200 * 10**9, gpu="rtx-3090", socket="epyc-milan"))
    plan = make_plan(model, machine)
    disk = next(use for use in plan.memories if use.name == "disk")
    assert plan.mode == "mmap" and 0 < disk.weight_bytes < 20 * GIB
    assert {one.name.split(".")[2] for one in plan.tensors if one.place == "disk"} <= {
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
    }
    seconds = {(part.part, part.place): part.seconds for part in plan.decode[0].parts}
    assert seconds["routed experts", "disk"] == pytest.approx(disk.weight_bytes * 8 / 256 / 5e9, rel=0.01)


def test_96_gb_stream_or_are_refused(v3) -> None:
    machine = describe(Description(memory=96 * GIB, gpu="rtx-3090", memory_bandwidth=80e9, cores=16))
    plan = make_plan(v3, machine)
    assert plan.mode == "mmap" and plan.decode[0].bound_by == "disk"
    with pytest.raises(
        DoesNotFit, match=r"need 3\d\d\.\d GiB of DRAM; 92\.0 GiB may be used; leave out --no-mmap"
    ) as no:
        make_plan(v3, machine, Settings(mmap=False))
    assert "bits a weight" not in str(no.value)  # not even the smallest would fit
    with pytest.raises(DoesNotFit, match=r"take the model quantized to 1\.6 bits a weight or less, as iq1_s is"):
        make_plan(v3, describe(Description(memory=150 * GIB, socket="epyc-milan")), Settings(mmap=False))


def test_twelve_channels_and_a_5090(v3) -> None:
    plan = make_plan(v3, describe(Description(memory=768 * GIB, gpu="rtx-5090", socket="epyc-turin")))
    assert plan.mode == "resident" and plan.decode[0].ceiling_tokens_per_second > 35


@pytest.mark.parametrize(
    ("context", "depths", "prompts"),
    [(1, [0], [1]), (64, [0, 63], [64]), (4096, [0, 4095], [64, 512, 4096]), (4097, [0, 4096], [64, 512, 4096, 4097])],
)
def test_speeds_up_to_the_end_of_the_context(context: int, depths: list[int], prompts: list[int], v3) -> None:
    """A token that is decoded at a depth is cached, too: it is less than the context."""
    plan = make_plan(v3, BOX, Settings(context=context))
    assert [speed.depth for speed in plan.decode] == depths
    assert [speed.prompt_tokens for speed in plan.prefill] == prompts


def test_nodes_are_filled_as_a_load_fills_them(v3) -> None:
    """Each with what its threads compute, whatever its size: the small one decides what is resident."""
    big, small = BOX.nodes
    disk = next(memory for memory in BOX.memories if memory.kind == "disk")
    two = Machine("two nodes", False, (big, small, disk), (), (BOX.cpu,))
    uneven = replace(two, memories=(big, replace(small, bytes=100 * GIB), disk))
    with pytest.raises(DoesNotFit) as no:
        make_plan(v3, uneven, Settings(mmap=False))
    assert no.value.limit == "100.0 GiB of node1 may be used"
    assert "GiB of DRAM, 189.3 GiB of them " in no.value.found and "on node1, whose threads read" in no.value.found
    assert "leave out --no-mmap" in no.value.remedy and "quantized to 1.6" in no.value.remedy
    plan = make_plan(v3, uneven)
    held = {use.name: use.weight_bytes for use in plan.memories}
    assert plan.mode == "mmap" and held["node1"] < 100 * GIB < 200 * GIB < held["node0"]
    enough = replace(two, memories=(big, replace(small, bytes=200 * GIB), disk))
    plan = make_plan(v3, enough, Settings(mmap=False))
    first, second = (use for use in plan.memories if use.name.startswith("node"))
    assert abs(first.weight_bytes - second.weight_bytes) < 10_000
    faster = replace(enough, memories=(replace(big, read_bandwidth=3 * small.read_bandwidth), *enough.memories[1:]))
    plan = make_plan(v3, faster, Settings(mmap=False))  # of four threads three are on node0
    first, second = (use for use in plan.memories if use.name.startswith("node"))
    assert first.weight_bytes == pytest.approx(3 * second.weight_bytes)
    limited = make_plan(v3, enough, Settings(memory=450 * GIB, mmap=False))
    assert [use.bytes for use in limited.memories[:2]] == [250 * GIB, 200 * GIB]


def test_no_gpu(v3) -> None:
    machine = describe(Description(memory=512 * GIB, socket="epyc-genoa"))
    plan = make_plan(v3, machine, Settings(context=4096))
    assert {one.place for one in plan.tensors} == {"node0"}
    read = 8 / 256 * sum(t.nbytes for t in v3.by_part["routed experts"])
    read += sum(t.nbytes for t in v3.tensors if t.name in dense(v3) and len(t.shape) > 1)
    assert plan.decode[0].ceiling_tokens_per_second == pytest.approx(460.8e9 / read, rel=1e-6)
    assert [speed.prompt_tokens for speed in plan.prefill] == [64, 512, 4096]
    same = make_plan(v3, replace(machine, memories=machine.memories), Settings(context=4096, device="cpu"))
    assert same.decode == plan.decode
    with pytest.raises(PlacementError, match=r"device 'cuda'; .* has no GPU; use --device cpu"):
        make_plan(v3, machine, Settings(device="cuda"))


SLOW = Processor(
    "cpu",
    "one core, round numbers",
    1,
    tuple(LinearRate("linear", kind, size, 0.0, ((1, 1e9),)) for kind, size in (("Q8_0", 1.0625), ("F32", 4.0))),
    (AttentionRate("f16", 0.0, 1e9, 1e9, 1e9),),
    (),
)


def test_a_prediction_by_hand() -> None:
    """Everything at 1 GFLOP/s and nothing else: seconds are the GFLOP."""
    d = replace(MODELS["deepseek-v2-lite"], layers=2)
    model = build("two layers", d, "q8_0", bias=False)
    machine = Machine("slow", True, (Memory("node0", "dram", 64 * GIB, 1e12),), (), (SLOW,))
    plan = make_plan(model, machine, Settings(context=4096))
    weights = {tensor.name: tensor.weights for tensor in model.tensors if len(tensor.shape) > 1}
    head = weights.pop("output.weight")
    del weights["token_embd.weight"]
    used = sum(size * (6 / 64 if "_exps" in name else 1) for name, size in weights.items())
    attention = 2 * 16 * (4 * 512 + 2 * 64)  # of two layers, for each pair
    seconds = 2 * (used + head) + attention
    assert plan.decode[0].tokens_per_second == pytest.approx(1e9 / seconds)
    at_4095 = 2 * (used + head) + attention * 4096
    assert plan.decode[1].tokens_per_second == pytest.approx(1e9 / at_4095)
    # 63 tokens, of whose last layer only projections count, then one with the head
    last = {name: size for name, size in weights.items() if name.startswith("blk.1.")}
    skipped = sum(
        size * (6 / 64 if "_exps" in name else 1)
        for name, size in last.items()
        if not name.startswith(("blk.1.attn_q.", "blk.1.attn_kv_a_mqa."))
    )
    first = 63 * 2 * (used - skipped) + attention / 2 * 63 * 64 / 2
    assert plan.prefill[0].tokens_per_second == pytest.approx(64e9 / (first + 2 * (used + head) + attention * 64))
    assert plan.prefill[0].bound_by == plan.decode[0].bound_by == "cpu arithmetic"
    parts = {part.part: part.seconds for part in plan.decode[1].parts}
    assert parts["attention"] == pytest.approx(attention * 4096 / 1e9)
    assert sum(parts.values()) == pytest.approx(at_4095 / 1e9)
    half = make_plan(model, replace(machine, processors=(replace(SLOW, threads=4),)), Settings(threads=2))
    assert half.threads == 2
    assert half.decode[0].tokens_per_second == pytest.approx(plan.decode[0].tokens_per_second / 2)


def test_python_s_share_by_hand() -> None:
    """A pass costs 1000 s beside what it computes, a call that is not recorded 1 s, nothing else anything."""
    model = build("two layers", replace(MODELS["deepseek-v2-lite"], layers=2), "q8_0", bias=False)
    cpu = replace(
        SLOW,
        linear=tuple(replace(rate, flops_at=((1, 1e30),)) for rate in SLOW.linear),
        attention=(AttentionRate("f16", 0.0, 1e30, 1e30, 1e30),),
        verbs=(VerbRate("pass", 1000.0, 0.0), VerbRate("call", 1.0, 0.0)),
    )
    machine = Machine("fast", True, (Memory("node0", "dram", 64 * GIB, 1e30),), (), (cpu,))
    plan = make_plan(model, machine, Settings(context=4096))
    assert 1 / plan.decode[0].tokens_per_second == pytest.approx(1000)
    # Queries with latents, W_uk, W_uv, output, the dense network; of the last layer queries with latents; 9 small verbs
    assert 64 / plan.prefill[0].tokens_per_second == pytest.approx(1000 + 5 + 1 + 2 * 9 + 1000)


def test_a_gpu_and_its_link_by_hand() -> None:
    """A GPU a thousand times as fast; everything but routed experts is on it."""
    d = replace(MODELS["deepseek-v2-lite"], layers=2)
    model = build("two layers", d, "q8_0", bias=False)
    fast = replace(
        SLOW,
        name="gpu0",
        linear=tuple(replace(rate, flops_at=((1, 1e12),)) for rate in SLOW.linear),
        attention=(AttentionRate("f16", 0.0, 1e12, 1e12, 1e12),),
    )
    memories = (Memory("gpu0", "vram", 16 * GIB, 1e15), Memory("node0", "dram", 64 * GIB, 1e15))
    link = Link("gpu0", 1e12, 1e12, 1e12, 1e12, 0.001)
    machine = Machine("hand", True, memories, (link,), (SLOW, fast), ())
    plan = make_plan(model, machine, Settings(context=4096, gpu_experts=0))
    routed = sum(t.weights for t in model.by_part["routed experts"])
    shared = sum(t.weights for t in model.by_part["shared expert"])
    seconds = {(part.part, part.place): part.seconds for part in plan.decode[0].parts}
    assert seconds["routed experts", "cpu"] == pytest.approx(2 * routed * 6 / 64 / 1e9)
    assert seconds["shared expert", "gpu0"] == pytest.approx(2 * shared / 1e12)
    # to the GPU once, to the experts and back
    assert seconds["other", "pcie"] == pytest.approx(3 * (0.001 + 4 * 2048 / 1e12))
    serial = 1 / plan.decode[0].tokens_per_second
    assert serial == pytest.approx(sum(seconds.values()))
    assert 1 / plan.decode[0].overlapped_tokens_per_second == pytest.approx(serial - 2 * shared / 1e12)
    # 511 tokens in two halves, whose layer 2 is the last one and only fills its cache, and a token
    deeper = replace(MODELS["deepseek-v2-lite"], layers=3)
    plan = make_plan(build("three layers", deeper, "q8_0", bias=False), machine, Settings(context=512, gpu_experts=0))
    speed = plan.prefill[1]
    seconds = {(part.part, part.place): part.seconds for part in speed.parts}
    assert seconds["routed experts", "cpu"] == pytest.approx(2 * routed * 6 / 64 * (511 + 2) / 1e9, rel=1e-3)
    saved = 512 / speed.tokens_per_second - 512 / speed.overlapped_tokens_per_second
    assert saved == pytest.approx(sum(one for (_, place), one in seconds.items() if place == "gpu0"), rel=1e-2)
    quick = replace(machine, processors=(replace(fast, name="cpu"), replace(SLOW, name="gpu0")))
    plan = make_plan(build("three layers", deeper, "q8_0", bias=False), quick, Settings(context=512, gpu_experts=0))
    speed = plan.prefill[1]
    seconds = {(part.part, part.place): part.seconds for part in speed.parts}
    saved = 512 / speed.tokens_per_second - 512 / speed.overlapped_tokens_per_second
    assert saved == pytest.approx(seconds["routed experts", "cpu"], rel=1e-6), "the shorter one"


def test_experts_on_the_gpu_by_number_and_by_use(v3) -> None:
    plan = make_plan(v3, BOX, Settings(gpu_experts=300))
    first = plan.by_tensor["blk.3.ffn_up_exps.weight"]
    assert [one.place for one in first] == ["gpu0"]
    second = plan.by_tensor["blk.4.ffn_up_exps.weight"]
    assert second[0].experts == tuple(range(44)) and [one.place for one in second] == ["gpu0", "node0", "node1"]
    counts = [[100] * 256 for _ in range(58)]
    counts[10][7] = counts[57][255] = 3000
    used = make_plan(v3, BOX, Settings(gpu_experts=2, expert_counts=tuple(map(tuple, counts))))
    found = {one.name: one.experts for one in used.tensors if one.place == "gpu0" and "_exps" in one.name}
    assert found["blk.13.ffn_down_exps.weight"] == (7,) and found["blk.60.ffn_gate_exps.weight"] == (255,)
    assert len(found) == 6
    unknown = make_plan(v3, BOX, Settings(gpu_experts=2))
    assert used.decode[0].ceiling_tokens_per_second > unknown.decode[0].ceiling_tokens_per_second
    with pytest.raises(
        DoesNotFit, match=r"4000 experts on the GPU; there is room for \d+; use --gpu-experts (\d+)"
    ) as no:
        make_plan(v3, BOX, Settings(gpu_experts=4000))
    number = int(str(no.value).split("--gpu-experts ")[1].split(",")[0])
    assert make_plan(v3, BOX, Settings(gpu_experts=number)).fits
    with pytest.raises(DoesNotFit):
        make_plan(v3, BOX, Settings(gpu_experts=number + 1))
    with pytest.raises(PlacementError, match="15000 experts on the GPU; 256 x 58 exist"):
        make_plan(v3, BOX, Settings(gpu_experts=15000))
    with pytest.raises(PlacementError, match=r"expert counts of 1 layers; .* has 58 layers of 256 experts"):
        make_plan(v3, BOX, Settings(expert_counts=((1,) * 256,)))
    row = (8,) * 255
    with pytest.raises(PlacementError, match=r"counts of layer 60: 0 in all, 0 of one expert; .*; count again"):
        make_plan(v3, BOX, Settings(expert_counts=((1,) * 256,) * 57 + ((0,) * 256,)))
    with pytest.raises(
        PlacementError, match=r"layer 3: 2332 in all, 292 of one expert; .* 8 different .* at most 291\.5"
    ):
        make_plan(v3, BOX, Settings(expert_counts=((*row, 292),) * 58))
    assert make_plan(v3, BOX, Settings(expert_counts=((*row, 291),) * 58)).fits


def test_a_gpu_too_small_to_help_is_left_alone() -> None:
    """A layer or two of a small model, each reached over PCIe, would only cost time."""
    model = preset("deepseek-v2-lite:q4_k_m")
    machine = describe(Description(memory=64 * GIB, memory_bandwidth=400e9, cores=64, gpu="rtx-3090"))
    short = Settings(gpu_memory=1300 << 20, context=100)
    without, forced = make_plan(model, machine, short), make_plan(model, machine, replace(short, device="cuda"))
    assert not on_gpu(without) and on_gpu(forced) and job_seconds(without) < job_seconds(forced)
    # At the end of 8192 tokens attention is most of the work, and a layer of it on the GPU pays
    deep = make_plan(model, machine, Settings(gpu_memory=1300 << 20))
    left = make_plan(model, machine, Settings(gpu_memory=1300 << 20, device="cpu"))
    assert on_gpu(deep) and deep.decode[0].tokens_per_second < left.decode[0].tokens_per_second
    assert deep.decode[-1].tokens_per_second > left.decode[-1].tokens_per_second
    prompt, decode = left.prefill[-1], left.decode[-1]
    assert (prompt.prompt_tokens, decode.depth) == (8192, 8191)
    job = 8192 / prompt.tokens_per_second + 512 / decode.tokens_per_second
    assert job_seconds(left) == pytest.approx(job) and job > job_seconds(deep)
    with pytest.raises(DoesNotFit, match=r"1\.0 GiB of VRAM may be used; .*use --device cpu"):
        make_plan(model, machine, Settings(gpu_memory=GIB, device="cuda"))


def test_several_sequences_have_room_for_two_prompts_at_once(v3) -> None:
    settings = [Settings(device="cpu", sequences=count, context=2048) for count in (1, 2, 4)]
    one, two, four = (sum(use.buffer_bytes for use in make_plan(v3, BOX, each).memories) for each in settings)
    assert two - one == activation_bytes(v3.dimensions, 1024) > 300 << 20 and four == two


def test_what_cannot_be_asked_for(v3) -> None:
    with pytest.raises(PlacementError, match=r"a context of 163841 tokens; .* at most 163840; use --context 163840"):
        make_plan(v3, BOX, Settings(context=163841))
    with pytest.raises(InvalidDocument, match="sequences = 0; 1 or more; change --sequences"):
        make_plan(v3, BOX, Settings(sequences=0))
    with pytest.raises(PlacementError, match=r"129 threads; 2 for each of the 64 cores .*; use --threads 64"):
        make_plan(v3, BOX, Settings(threads=129))
    assert make_plan(v3, BOX, Settings(threads=128)).threads == 128
    tiny = describe(Description(memory=4 * GIB + (512 << 20), socket="epyc-rome"))
    with pytest.raises(DoesNotFit, match=r"0\.5 GiB of DRAM may be used; no smaller context .* add some"):
        make_plan(v3, tiny)
    smaller = describe(Description(memory=8 * GIB, socket="epyc-rome"))
    with pytest.raises(DoesNotFit, match=r"lower --context to \d+ or less, or use --kv q8_0"):
        make_plan(v3, smaller, Settings(context=50_000))
    odd = replace(v3, dimensions=replace(v3.dimensions, rope_dim=65))
    with pytest.raises(DoesNotFit, match=r"lower --context to \d+ or less") as refused:
        make_plan(odd, smaller, Settings(context=50_000))
    assert "--kv q8_0" not in refused.value.remedy, "its blocks would not be whole"


def test_a_plan_of_v3_takes_little_memory() -> None:
    tracemalloc.start()
    make_plan(preset("deepseek-v3:q4_k_m"), BOX, Settings(context=32768))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


def test_known_parts() -> None:
    """Bandwidths are those of the vendors' pages."""
    assert "CPU, 1 core, 8 GiB" in describe(Description(memory=8 * GIB, memory_bandwidth=20e9, cores=1)).name
    channels = {name: socket.bandwidth / 1e9 for name, socket in SOCKETS.items()}
    assert channels["epyc-milan"] == channels["xeon-icelake"] == pytest.approx(204.8)
    assert channels["epyc-genoa"] == pytest.approx(460.8) and channels["xeon-sapphire-rapids"] == pytest.approx(307.2)
    machine = describe(
        Description(memory=384 * GIB, memory_bandwidth=460e9, gpu="RTX 4090", pcie="4x16", cores=48, sockets=1)
    )
    assert machine.vram is not None and machine.vram.bytes == GPUS["rtx-4090"].bytes
    assert machine.dram_bandwidth == 460e9 and machine.cpu.threads == 48 and not machine.measured
    assert machine.links[0].to_gpu_pinned == pytest.approx(25e9, rel=0.02)
    assert Machine.from_json(machine.to_json()) == machine
    for wrong, message in {
        "gpu": "no GPU 'x' is known; known are rtx-3090",
        "socket": "no socket 'x' is known",
        "pcie": "pcie 'x'; generation 3, 4 or 5 .*write 4x16",
    }.items():
        given = {"memory": 384 * GIB, "memory_bandwidth": 460e9, "gpu": "rtx-4090", wrong: "x"}
        with pytest.raises(InvalidDocument, match=message):
            describe(Description(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"socket": None},
            "memory of no known bandwidth; .*; say --memory-bandwidth, or --socket and one of epyc-rome",
        ),
        ({"memory": 4 * GIB}, "memory of 4.0 GiB; the system .* take 4.0 GiB of it; raise --memory$"),
        ({"memory_bandwidth": 0.0}, "memory_bandwidth = 0; more than 0; raise --memory-bandwidth, or leave it out"),
        ({"disk_bandwidth": 0.0}, "disk_bandwidth = 0; .*--disk-bandwidth"),
        ({"cores": 0}, "cores = 0; "),
        ({"sockets": 0}, "sockets = 0; "),
    ],
)
def test_machines_that_cannot_be(given: dict, message: str) -> None:
    with pytest.raises(InvalidDocument, match=message):
        describe(Description(**{"memory": 384 * GIB, "socket": "epyc-milan"} | given))


def test_bandwidths_are_more_than_zero() -> None:
    with pytest.raises(InvalidDocument, match="node7: read_bandwidth = 0 bytes/s; more than 0"):
        Memory("node7", "dram", GIB, 0.0)
    with pytest.raises(InvalidDocument, match=r"link of gpu0: \(1.0, 1.0, 0.0, 1.0\) bytes/s"):
        Link("gpu0", 1.0, 1.0, 0.0, 1.0, 1e-5)
    with pytest.raises(InvalidDocument, match=r"AttentionRate f16: 1.0, 0.0, 1.0 FLOP/s"):
        AttentionRate("f16", 0.0, 1.0, 0.0, 1.0)


def test_memory_of_a_gpu_as_it_is_said(v3) -> None:
    """None of it is none, not all; and there are cards with more than they are sold with."""
    box = Description(memory=1 << 40, socket="epyc-genoa", gpu="rtx-4090")
    nothing = describe(replace(box, gpu_memory=0))
    assert nothing.vram is not None and nothing.vram.bytes == 0
    assert not on_gpu(make_plan(v3, nothing))
    more = describe(replace(box, gpu_memory=48 * GIB))
    assert more.vram is not None and more.vram.bytes == 48 * GIB
    assert more.notes[-1] == "an NVIDIA GeForce RTX 4090 is sold with 24.0 GiB, not with 48.0 GiB"
    assert len(describe(box).notes) == len(nothing.notes) == 1
