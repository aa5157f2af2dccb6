"""replan: plans edited by hand, and what of them is refused."""

import copy
import json

import pytest

from placement import (
    Description,
    DoesNotFit,
    InvalidDocument,
    PlacementError,
    Settings,
    describe,
    make_plan,
    preset,
    replan,
)
from placement.plan import Plan, by_tensor
from placement.presets import MODELS
from placement.quantization import QUANTIZATIONS

MODEL = preset("deepseek-v2-lite:q4_k_m")
MACHINE = describe(Description(memory=32 << 30, memory_bandwidth=80e9, cores=8, gpu="rtx-3090", sockets=2))


@pytest.fixture(scope="module")
def document():
    return make_plan(MODEL, MACHINE, Settings(context=4096, gpu_memory=6 << 30, gpu_experts=70)).to_json()


@pytest.fixture
def edited(document):
    return copy.deepcopy(document)


def entries(document, name: str) -> list[dict]:
    return [one for one in document["tensors"] if one["name"] == name]


def move(document, name: str, place: str) -> None:
    size = sum(one["bytes"] for one in entries(document, name))
    document["tensors"] = [one for one in document["tensors"] if one["name"] != name]
    document["tensors"].append({"name": name, "place": place, "bytes": size, "experts": None})


def test_the_keys_of_the_contract(document) -> None:
    assert {
        "model_bytes",
        "memories",
        "tensors",
        "decode",
        "prefill",
        "decode_ceiling_tokens_per_second",
        "fits",
    } <= set(document)
    assert set(document["memories"][0]) == {"name", "bytes", "weight_bytes", "kv_bytes", "buffer_bytes"}
    assert {"name", "place", "bytes"} <= set(document["tensors"][0])
    assert {"depth", "tokens_per_second", "ceiling_tokens_per_second", "bound_by"} <= set(document["decode"][0])
    assert {"prompt_tokens", "tokens_per_second", "bound_by"} <= set(document["prefill"][0])
    json.dumps(document, allow_nan=False)


def test_unchanged(edited) -> None:
    assert replan(edited, MODEL, MACHINE) == Plan.from_json(edited)


def test_experts_moved_by_hand(edited) -> None:
    before = Plan.from_json(edited)
    edited["settings"]["gpu_experts"] = None
    for part in ("gate", "up", "down"):
        move(edited, f"blk.9.ffn_{part}_exps.weight", "gpu0")
    after = replan(edited, MODEL, MACHINE)
    size = sum(t.nbytes for t in MODEL.routed_by_layer[9])
    assert after.memories[0].weight_bytes == before.memories[0].weight_bytes + size
    assert after.decode[0].tokens_per_second > before.decode[0].tokens_per_second


@pytest.mark.parametrize("gpu", [None, "rtx-4090"])
@pytest.mark.parametrize("name", [f"{model}:{kind}" for model in MODELS for kind in QUANTIZATIONS])
def test_every_plan_is_accepted_as_it_was_made(name: str, gpu: str | None) -> None:
    model, machine = preset(name), describe(Description(memory=192 << 30, socket="epyc-genoa", sockets=2, gpu=gpu))
    plan = make_plan(model, machine, Settings(context=4096))
    assert replan(plan.to_json(), model, machine) == plan


@pytest.mark.parametrize(
    "settings",
    [
        Settings(device="cpu"),
        Settings(device="cpu", gpu_experts=0),
        Settings(device="cuda", mmap=False),
        Settings(mmap=True),
        Settings(device="cuda", gpu_memory=4 << 30, gpu_experts=0),
    ],
)
def test_whatever_was_asked_for_is_accepted_again(settings: Settings) -> None:
    plan = make_plan(MODEL, MACHINE, settings)
    assert replan(plan.to_json(), MODEL, MACHINE) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cpu"}, r"settings.device is 'cpu'; its tensors put [\d,]{9,} bytes on gpu0; correct the plan"),
        ({"gpu_experts": 71}, "settings.gpu_experts is 71; 70 experts are on gpu0; correct"),
        ({"gpu_experts": 0}, "settings.gpu_experts is 0; 70 experts are on gpu0; correct"),
        ({"mmap": True}, "settings.mmap is true; its mode is 'resident'; correct"),
    ],
)
def test_settings_that_the_places_contradict(edited, change: dict, message: str) -> None:
    edited["settings"].update(change)
    with pytest.raises(PlacementError, match=message):
        replan(edited, MODEL, MACHINE)


def test_devices_and_disks_that_the_places_contradict(edited) -> None:
    edited["settings"].update(device="cuda", gpu_experts=None)
    for tensor in MODEL.tensors:
        move(edited, tensor.name, "node0")
    with pytest.raises(PlacementError, match=r"settings\.device is 'cuda'; none of its tensors is on gpu0; correct"):
        replan(edited, MODEL, MACHINE)
    edited["settings"].update(device="cpu", mmap=False)
    head = MODEL.by_part["head"][0]
    move(edited, head.name, "disk")
    with pytest.raises(PlacementError, match=f"settings.mmap is false; its tensors leave {head.nbytes:,} bytes on the"):
        replan(edited, MODEL, MACHINE)
    edited["settings"]["mmap"] = None
    assert replan(edited, MODEL, MACHINE).mode == "mmap"
    edited.update(mode="mmap")
    edited["settings"]["mmap"] = False
    move(edited, head.name, "node0")
    with pytest.raises(PlacementError, match=r"settings\.mmap is false; its mode is 'mmap'; correct"):
        replan(edited, MODEL, MACHINE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blk.4.ffn_gate_shexp.weight", r"'blk.4.ffn_\w+_shexp.weight' is on .*; gate, up and down of the shared exp"),
        ("blk.0.ffn_up.weight", r"'blk.0.ffn_\w+.weight' is on .*; gate, up and down of the dense network of a layer"),
        ("blk.4.attn_output.weight", r"'blk.4.attn_\w+.weight' is on .*; the matrices of attention of a layer"),
    ],
)
def test_what_one_kernel_needs_is_together(edited, name: str, message: str) -> None:
    assert entries(edited, name)[0]["place"] == "gpu0"
    move(edited, name, "node0")
    with pytest.raises(PlacementError, match=message):
        replan(edited, MODEL, MACHINE)
    for tensor in MODEL.tensors:  # the others of its layer and part follow: accepted
        if tensor.name.startswith(name.partition("_")[0]) and "_exps" not in tensor.name and "_inp" not in tensor.name:
            move(edited, tensor.name, "node0")
    assert by_tensor(replan(edited, MODEL, MACHINE).tensors)[name][0].place == "node0"


def test_numbers_that_follow_are_computed_anew(edited) -> None:
    edited["decode"][0]["tokens_per_second"] = 1e9
    edited["memories"][0]["weight_bytes"] = 0
    assert replan(edited, MODEL, MACHINE).decode[0].tokens_per_second < 1e9
    assert replan(edited, MODEL, MACHINE).memories[0].weight_bytes > 0


def test_other_settings(edited) -> None:
    edited["settings"]["context"] = 8192
    vram = replan(edited, MODEL, MACHINE).memories[0]
    assert vram.kv_bytes == 27 * 8192 * 1152
    edited["settings"]["context"] = 163_840
    with pytest.raises(DoesNotFit, match=r"gpu0 is to hold .* it has room for 6\.0 GiB; move [\d.]+ GiB elsewhere"):
        replan(edited, MODEL, MACHINE)


def test_too_much_in_one_memory(edited) -> None:
    edited["settings"]["gpu_experts"] = 26 * 64
    for layer in range(2, 27):
        for part in ("gate", "up", "down"):
            move(edited, f"blk.{layer}.ffn_{part}_exps.weight", "gpu0")
    with pytest.raises(DoesNotFit, match=r"gpu0 is to hold 9\.\d GiB of weights"):
        replan(edited, MODEL, MACHINE)
    smaller = describe(Description(memory=9 << 30, memory_bandwidth=80e9, cores=8, gpu="rtx-3090", sockets=2))
    plan = make_plan(MODEL, MACHINE, Settings(context=4096, gpu_memory=6 << 30, gpu_experts=0)).to_json()
    with pytest.raises(DoesNotFit, match=r"node0 is to hold"):
        replan(plan, MODEL, smaller)


def test_attention_moved_by_hand_takes_its_cache_along(edited) -> None:
    before = Plan.from_json(edited)
    for tensor in MODEL.by_part["mla"]:
        if tensor.layer == 5:
            move(edited, tensor.name, "node0")
    after = replan(edited, MODEL, MACHINE)
    layer = before.memories[0].kv_bytes // 27
    assert after.memories[0].kv_bytes == 26 * layer
    assert sum(use.kv_bytes for use in after.memories[1:]) == layer


NAME = "blk.2.ffn_up_exps.weight"  # six of its experts are on the GPU


def test_the_plan_has_a_divided_tensor(document) -> None:
    assert [one["place"] for one in entries(document, NAME)] == ["gpu0", "node0", "node1"]
    assert entries(document, NAME)[0]["experts"] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "at, change, message",
    [
        (0, {"bytes": 5}, r"has \d+ bytes in the plan; it has \d+ bytes in the model; correct the plan"),
        (1, {"place": "node7"}, r"is in 'node7'; this machine has disk, gpu0, node0, node1"),
        (2, {"place": "node0"}, "is twice in one place"),
        (0, {"name": "blk.77.ffn_up_exps.weight"}, "is in the plan only"),
        (0, {"experts": None}, "is on the GPU in part: which experts is not said"),
        (0, {"experts": [0, 1, 2, 3, 4, 4]}, "lists experts twice.*; they ascend, from 0 to at most 63"),
        (0, {"experts": [0, 1, 2, 3, 4, 64]}, "lists experts twice.*; they ascend, from 0 to at most 63"),
        (0, {"experts": [0, 1, 2]}, r"has \d+ bytes on the GPU; an expert has \d+ bytes, and 3 are listed"),
        (0, {"experts": [0, 1, 2, 3, 4, 6]}, "with different experts"),
        (1, {"experts": [60]}, "only routed experts on the GPU are listed"),
    ],
)
def test_wrong_places(edited, at: int, change: dict, message: str) -> None:
    entries(edited, NAME)[at].update(change)
    with pytest.raises(PlacementError, match=message):
        replan(edited, MODEL, MACHINE)


def test_missing_and_divided_tensors(edited) -> None:
    gone = [one for one in edited["tensors"] if one["name"] != NAME]
    with pytest.raises(PlacementError, match=f"'{NAME}' is in the model only"):
        replan(edited | {"tensors": gone}, MODEL, MACHINE)
    head = entries(edited, "output.weight")[0]
    head["bytes"] //= 2
    rest = {**head, "place": "node0", "bytes": sum(t.nbytes for t in MODEL.by_part["head"]) - head["bytes"]}
    with pytest.raises(PlacementError, match="is divided between the GPU and other places"):
        replan(edited | {"tensors": [*edited["tensors"], rest]}, MODEL, MACHINE)
    move(
        edited,
        "blk.3.attn_kv_b.weight" if entries(edited, "blk.3.attn_kv_b.weight") else "blk.3.attn_k_b.weight",
        "node1",
    )
    with pytest.raises(PlacementError):
        replan(edited, MODEL, MACHINE)


def test_no_plan_at_all(edited) -> None:
    for wrong, message in (([], "Plan = .*needed is an object"), ({}, "Plan: missing keys: 'decode'")):
        with pytest.raises(InvalidDocument, match=message):
            replan(wrong, MODEL, MACHINE)
    with pytest.raises(InvalidDocument, match=r"Plan.tensors\[0\].bytes = -1"):
        edited["tensors"][0]["bytes"] = -1
        replan(edited, MODEL, MACHINE)
