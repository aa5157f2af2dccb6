"""placement's dataclasses: JSON there and back, and what is refused."""

import json
from dataclasses import replace

import pytest

from placement.errors import InvalidDocument
from placement.machine import AttentionRate, LinearRate, Link, Machine, Memory, Processor, VerbRate
from placement.model import Dimensions, Model, Tensor, part_of
from placement.plan import Settings

DIMENSIONS = Dimensions(
    vocab_size=102400,
    hidden_size=2048,
    layers=27,
    dense_layers=1,
    nextn_layers=0,
    heads=16,
    q_lora_rank=0,
    kv_lora_rank=512,
    nope_dim=128,
    rope_dim=64,
    value_dim=128,
    intermediate_size=10944,
    expert_intermediate_size=1408,
    experts=64,
    experts_used=6,
    shared_experts=2,
    context_length=163840,
)
CPU = Processor(
    name="cpu",
    description="two cores",
    threads=2,
    linear=(LinearRate("linear", "Q4_K", 0.5625, 2e-6, ((1, 1e11), (16, 6e11))),),
    attention=(AttentionRate("f16", 3e-6, 1e11, 1.2e11, 1.7e11),),
    verbs=(VerbRate("rms_norm", 1e-6, 1e-9),),
)
MACHINE = Machine("test", True, (Memory("node0", "dram", 1 << 34, 41e9),), (), (CPU,), ("a note",))


def through_json(value):
    return type(value).from_json(json.loads(json.dumps(value.to_json(), allow_nan=False)))


def test_there_and_back() -> None:
    model = Model("lite", DIMENSIONS, (Tensor("token_embd.weight", "Q4_K", (102400, 2048), 117964800),))
    for value in (model, MACHINE, Settings(), Settings(context=5, mmap=True, expert_counts=((1, 2), (3, 4)))):
        again = through_json(value)
        assert again == value and hash(again) == hash(value)


def test_a_float_survives_json() -> None:
    memory = Memory("node0", "dram", 1, 41e9 / 3)
    assert through_json(memory).read_bandwidth == 41e9 / 3
    assert isinstance(Memory.from_json({**memory.to_json(), "read_bandwidth": 7}).read_bandwidth, float)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bytes": -1}, r"Memory.bytes = -1; needed is an integer, 0 or more"),
        ({"bytes": 1.0}, r"Memory.bytes = 1.0"),
        ({"bytes": True}, r"Memory.bytes = True"),
        ({"read_bandwidth": float("nan")}, r"Memory.read_bandwidth = nan; needed is a finite number"),
        ({"read_bandwidth": float("inf")}, r"Memory.read_bandwidth = inf"),
        ({"read_bandwidth": "fast"}, r"Memory.read_bandwidth = 'fast'"),
        ({"name": None}, r"Memory.name = None; needed is a str"),
        ({"kind": "tape"}, r"Memory.kind = 'tape'; needed is one of 'vram', 'dram', 'disk'"),
        ({"speed": 1}, r"Memory: unknown keys: 'speed'; Memory has the keys name, kind"),
    ],
)
def test_wrong_documents(change: dict, message: str) -> None:
    document = MACHINE.nodes[0].to_json() | change
    with pytest.raises(InvalidDocument, match=message):
        Memory.from_json(document)


def test_missing_keys_and_wrong_containers() -> None:
    document = MACHINE.to_json()
    with pytest.raises(InvalidDocument, match=r"Machine.memories\[0\]: missing keys: 'kind'"):
        Machine.from_json(document | {"memories": [{"name": "node0", "bytes": 1, "read_bandwidth": 1}]})
    with pytest.raises(InvalidDocument, match=r"Machine.memories = {.*needed is a list"):
        Machine.from_json(document | {"memories": {}})
    with pytest.raises(InvalidDocument, match="Machine = 3; needed is an object"):
        Machine.from_json(3)
    with pytest.raises(InvalidDocument, match=r"flops_at\[0\] = \[1\]; needed is a list of 2"):
        LinearRate.from_json(CPU.linear[0].to_json() | {"flops_at": [[1]]})


def test_values_are_checked_when_made() -> None:
    with pytest.raises(InvalidDocument, match=r"Dimensions.heads = -1"):
        replace(DIMENSIONS, heads=-1)
    with pytest.raises(InvalidDocument, match="65 of 64 experts"):
        replace(DIMENSIONS, experts_used=65)
    with pytest.raises(InvalidDocument, match="two tensors of one name"):
        Model("twice", DIMENSIONS, (Tensor("a", "F32", (1,), 4),) * 2)
    with pytest.raises(InvalidDocument, match="columns ascend from 1"):
        replace(CPU.linear[0], flops_at=((2, 1.0),))
    with pytest.raises(InvalidDocument, match="no AttentionRate"):
        replace(CPU, attention=())


def test_machines_are_whole() -> None:
    with pytest.raises(InvalidDocument, match=r"processors \['cpu'\]; needed are \['cpu', 'gpu0'\]"):
        replace(MACHINE, memories=(*MACHINE.memories, Memory("gpu0", "vram", 1, 1.0)))
    with pytest.raises(InvalidDocument, match="one is DRAM"):
        replace(MACHINE, memories=())
    with pytest.raises(InvalidDocument, match="one for each GPU"):
        replace(MACHINE, links=(Link("gpu0", 1.0, 1.0, 1.0, 1.0, 1e-5),))


@pytest.mark.parametrize(
    "name, part",
    [
        ("token_embd.weight", "embedding"),
        ("output.weight", "head"),
        ("output_norm.weight", "norms"),
        ("blk.0.attn_norm.weight", "norms"),
        ("blk.0.attn_q_a_norm.weight", "norms"),
        ("blk.0.attn_kv_b.weight", "mla"),
        ("blk.0.ffn_gate.weight", "dense ffn"),
        ("blk.5.ffn_gate_inp.weight", "router"),
        ("blk.5.exp_probs_b.bias", "router"),
        ("blk.5.ffn_down_shexp.weight", "shared expert"),
        ("blk.5.ffn_down_exps.weight", "routed experts"),
        ("blk.27.ffn_down_exps.weight", "nextn"),
        ("blk.26.nextn.eh_proj.weight", "nextn"),
        ("rope_freqs.weight", "other"),
    ],
)
def test_parts(name: str, part: str) -> None:
    assert part_of(name, 27) == part
