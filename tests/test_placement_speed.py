"""What a prediction is made of, by hand: kernels that take no time, or all of it, on machines of round numbers."""

from dataclasses import replace

import pytest

from placement import AttentionRate, LinearRate, Link, Machine, Memory, Model, Processor, Settings, VerbRate
from placement.machine import CPU, GPU
from placement.plan import Placed
from placement.predict import Item, Pass, Predictor
from placement.presets import MODELS, build, preset
from placement.work import Layout, usage

GIB = 1 << 30
LITE = MODELS["deepseek-v2-lite"]
KV_ROW = 1152  # bytes of a token in a layer, f16


def processor(name: str, flops: float, attention: float = 1e30) -> Processor:
    """Products at so many FLOP/s, whatever the columns."""
    linear = tuple(LinearRate("linear", kind, 1.0, 0.0, ((1, flops),)) for kind in ("Q8_0", "F32"))
    return Processor(name, "", 1, linear, (AttentionRate("f16", 0.0, attention, attention, attention),), ())


def machine(*memories: Memory, flops: float = 1e30, gpu: Processor | None = None, seconds: float = 0.0) -> Machine:
    """`seconds`: of a crossing."""
    links = (Link(GPU, 1e30, 1e30, 1e30, 1e30, seconds),) if gpu else ()
    processors = (processor(CPU, flops), gpu) if gpu else (processor(CPU, flops),)
    return Machine("round numbers", True, memories, links, processors)


def model(layers: int = 2) -> Model:
    return build("lite", replace(LITE, layers=layers), "q8_0", bias=False)


def tied(layers: int = 2) -> Model:
    made = model(layers)
    return replace(made, tensors=tuple(tensor for tensor in made.tensors if tensor.name != "output.weight"))


def all_at(made: Model, place: str) -> tuple[Placed, ...]:
    return tuple(Placed(tensor.name, place, tensor.nbytes) for tensor in made.tensors)


def read_bytes(made: Model) -> float:
    """Of a token."""
    products = [t for t in made.tensors if len(t.shape) > 1 and t.name != "token_embd.weight"]
    return sum(t.nbytes * (6 / 64 if "_exps" in t.name else 1) for t in products)


NODES = (Memory("node0", "dram", 64 * GIB, 3e9), Memory("node1", "dram", 64 * GIB, 1e9))


def divided(made: Model, share: float) -> tuple[Placed, ...]:
    """So much of every tensor on the first node."""
    pairs = [(tensor.name, tensor.nbytes, int(share * tensor.nbytes)) for tensor in made.tensors]
    found = [(Placed(name, "node0", first), Placed(name, "node1", size - first)) for name, size, first in pairs]
    return tuple(one for pair in found for one in pair if one.bytes)


def test_sequences_decoded_together_read_the_union_of_their_experts() -> None:
    """By hand: the rest once, 1 - (1 - 6/64)^S of the experts, latents of each sequence. On V2-Lite, all of it."""
    made, box = model(), machine(Memory("node0", "dram", 64 * GIB, 1e9))
    there = Predictor(made, box, Settings(context=4096), all_at(made, "node0"))
    experts = sum(t.nbytes for t in made.tensors if "_exps" in t.name)
    rest = read_bytes(made) - experts * 6 / 64
    for sequences in (1, 2, 4):
        read = rest + experts * (1 - (1 - 6 / 64) ** sequences) + sequences * 1000 * 2 * KV_ROW
        speed = there.decode(1000, sequences)
        assert speed.ceiling_tokens_per_second == pytest.approx(sequences * 1e9 / read, rel=1e-5)
        assert speed.tokens_per_second == pytest.approx(sequences * 1e9 / (read + sequences * 2 * KV_ROW), rel=1e-5)
    whole = preset("deepseek-v2-lite:q4_k_m")
    assert Predictor(whole, box, Settings(context=4096), all_at(whole, "node0")).streams(4) == pytest.approx(
        1.68, abs=0.01
    )


@pytest.mark.parametrize(("share", "longest"), [(0.75, 0.25e-9), (0.5, 0.5e-9), (1.0, 1 / 3e9), (0.0, 1e-9)])
def test_nodes_wait_for_the_slowest(share: float, longest: float) -> None:
    """Of 3 and 1 GB/s: seconds of a byte are those of the node that takes longest."""
    made = model()
    there = Predictor(made, machine(*NODES), Settings(context=4096), divided(made, share))
    speed = there.decode(0)
    assert 1 / speed.ceiling_tokens_per_second == pytest.approx(read_bytes(made) * longest, rel=1e-5)
    seconds = sum(part.seconds for part in speed.parts if part.part not in ("attention", "other"))
    assert seconds == pytest.approx(read_bytes(made) * longest, rel=1e-5), "no kernel is faster than memory"


def test_measured_kernels_are_slowed_by_uneven_nodes_where_memory_binds() -> None:
    """One column: twice as long where all is on one of two nodes. Hundreds: longer by one reading at most."""
    made, nodes = model(), tuple(replace(node, read_bandwidth=1e12) for node in NODES)
    speeds = {}
    for share in (0.5, 1.0):
        there = Predictor(made, machine(*nodes, flops=1e9), Settings(context=4096), divided(made, share))
        items = {n: there.items(Pass(n, 0, logits=True)) for n in (1, 300)}
        speeds[share] = {n: sum(item.seconds for item in found if item.kind) for n, found in items.items()}
    assert speeds[1.0][1] == pytest.approx(2 * speeds[0.5][1], rel=1e-5)
    products = [t for t in made.tensors if len(t.shape) > 1 and t.name != "token_embd.weight"]
    once = sum(2 * t.weights for t in products if "attn_kv_b" not in t.name and "attn_k_b" not in t.name)
    once -= sum(2 * t.weights for t in products if "attn_v_b" in t.name)  # expanded attention does without
    assert speeds[1.0][300] - speeds[0.5][300] == pytest.approx(once / 1e9, rel=1e-3)


def test_tensors_on_one_node_each_are_read_one_after_the_other() -> None:
    """As many bytes on each node, and still each tensor waits for one of them."""
    made = model()
    half = tuple(Placed(t.name, "node1" if i % 2 else "node0", t.nbytes) for i, t in enumerate(made.tensors))
    nodes = tuple(replace(node, read_bandwidth=1e9) for node in NODES)
    there = Predictor(made, machine(*nodes), Settings(context=4096), half)
    assert 1 / there.ceiling(0)[0] == pytest.approx(1e9 / read_bytes(made))


def test_no_kernel_and_no_attention_is_faster_than_memory() -> None:
    """As a probe's noise would have it: 1e30 FLOP/s beside 1 GB/s."""
    made = model()
    memory = Memory("node0", "dram", 64 * GIB, 1e9)
    there = Predictor(made, machine(memory), Settings(context=8192), all_at(made, "node0"))
    for depth in (0, 4095):
        speed = there.decode(depth)
        ceiling = (read_bytes(made) + 2 * KV_ROW * depth) / 1e9
        assert 1 / speed.ceiling_tokens_per_second == pytest.approx(ceiling)
        assert 1 / speed.tokens_per_second == pytest.approx(ceiling + 2 * KV_ROW / 1e9)
        parts = {part.part: part.seconds for part in speed.parts}
        assert parts["attention"] == pytest.approx(2 * KV_ROW * (depth + 1) / 1e9)


def test_the_ceiling_counts_what_the_disk_reads() -> None:
    made = model()
    memories = Memory("node0", "dram", 64 * GIB, 1e30), Memory("disk", "disk", 64 * GIB, 1e8)
    placed = []
    for tensor in made.tensors:
        left = tensor.nbytes // 4 if "_exps" in tensor.name else 0
        placed += [Placed(tensor.name, "node0", tensor.nbytes - left)]
        placed += [Placed(tensor.name, "disk", left)] if left else []
    there = Predictor(made, machine(*memories), Settings(context=4096), tuple(placed))
    routed = sum(t.nbytes for t in made.by_part["routed experts"]) * 6 / 64
    speed = there.decode(0)
    assert 1 / speed.ceiling_tokens_per_second == pytest.approx(routed / 4 / 1e8)
    assert 1 / speed.tokens_per_second == pytest.approx(routed / 4 / 1e8)
    assert speed.bound_by == "disk"


VRAM = Memory(GPU, "vram", 64 * GIB, 1e30)
DRAM = Memory("node0", "dram", 64 * GIB, 1e30)


class Watched(Predictor):
    """`passes`: tokens of those that were predicted."""

    passes: tuple[int, ...] = ()

    def items(self, step: Pass) -> list[Item]:
        self.passes += (step.tokens,)
        return super().items(step)


def test_a_prompt_is_cut_as_it_is_computed() -> None:
    """A GPU's passes are halves."""
    made, box = model(), machine(VRAM, DRAM, gpu=processor(GPU, 1e30))
    settings = Settings(context=8192)
    for place, tokens, passes in (
        (GPU, 2304, (512, 512, 512, 512, 255, 1)),
        (GPU, 2305, (512, 512, 512, 512, 128, 128, 1)),
        (GPU, 1276, (512, 512, 251, 1)),
        ("node0", 3001, (1024, 1024, 952, 1)),
    ):
        there = Watched(made, box, settings, all_at(made, place))
        there.prefill(tokens)
        assert there.passes == passes


@pytest.mark.parametrize(("made", "crossings"), [(model(), 1), (tied(), 2)])
def test_a_tied_head_is_crossed_back_to(made: Model, crossings: int) -> None:
    """The embedding, and a head that is the embedding, are the CPU's; the layers and a head of its own the GPU's."""
    placed = [replace(one, place=GPU) if one.name != "token_embd.weight" else one for one in all_at(made, "node0")]
    assert Layout(made, placed).crossings() == crossings
    box = machine(VRAM, DRAM, gpu=processor(GPU, 1e30), seconds=1.0)
    speed = Predictor(made, box, Settings(context=4096), tuple(placed)).decode(0)
    assert 1 / speed.tokens_per_second == pytest.approx(crossings)


def test_chances_of_experts_add_up() -> None:
    """To those that a token uses; experts that were not seen may be chosen yet."""
    found = usage(3, [30, 30, 20, 10, 0, 0, 0, 0], 3)
    assert found == [3 * (count + 1) / 98 for count in (30, 30, 20, 10, 0, 0, 0, 0)]
    assert sum(found) == pytest.approx(3) and min(found) > 0
    assert usage(3, [1, 1, 1, 0, 0], 3) == [0.75, 0.75, 0.75, 0.375, 0.375]
    assert usage(3, [1 << 40] * 3, 3) == pytest.approx([1.0] * 3) and max(usage(3, [1 << 40] * 3, 3)) <= 1


def test_experts_on_the_gpu_are_counted_as_often_as_they_are_used() -> None:
    """Half of a layer's experts do nine tenths of its work."""
    made = model()
    counts = ((9,) * 32 + (1,) * 32,)
    placed = []
    for one in all_at(made, "node0"):
        if "_exps" in one.name:
            placed += [Placed(one.name, GPU, one.bytes // 2, tuple(range(32)))]
            one = replace(one, bytes=one.bytes // 2)
        placed.append(one)
    box = machine(VRAM, replace(DRAM, read_bandwidth=1e9), gpu=processor(GPU, 1e30))
    there = Predictor(made, box, Settings(context=4096, expert_counts=counts), tuple(placed))
    seconds = {(part.part, part.place): part.seconds for part in there.decode(0).parts}
    routed = sum(tensor.nbytes for tensor in made.by_part["routed experts"])
    assert seconds["routed experts", CPU] == pytest.approx(routed / 64 * 6 * 32 * 2 / 384 / 1e9)


def test_a_verb_is_called_once_for_a_layer() -> None:
    """The rest of a token: norms, rotations, the cache, the router, the pass itself."""
    verbs = ("rms_norm", "rope", "write_cache", "route")
    cpu = replace(processor(CPU, 1e30), verbs=tuple(VerbRate(verb, 1.0, 0.0) for verb in verbs))
    made = model(3)
    box = replace(machine(DRAM), processors=(cpu,))
    there = Predictor(made, box, Settings(context=4096), all_at(made, "node0"))
    # of three layers: 3 norms, 2 rotations, 1 cache; of two a router
    assert 1 / there.decode(0).tokens_per_second == pytest.approx(3 * (3 + 2 + 1) + 2)
