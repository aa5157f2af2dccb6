"""`hetero inspect` against sums made from the gguf package's own reading of the file."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from hetero.inspect import describe, group_of, inspect_file
from tests.model_files import SHAPES

ModelFile = Callable[..., Path]


def test_bytes_and_types_add_up(model_file: ModelFile) -> None:
    path = model_file("tiny", "Q4_K")
    report = inspect_file(path)
    tensors = gguf.GGUFReader(path).tensors
    groups = report["groups"]
    assert sum(group["bytes"] for group in groups.values()) == sum(int(t.n_bytes) for t in tensors)
    assert sum(group["tensors"] for group in groups.values()) == len(tensors)
    assert report["parameters"] == sum(int(np.prod(t.shape)) for t in tensors)
    assert report["bytes"] == path.stat().st_size
    assert "other" not in groups
    experts = [t for t in tensors if "_exps" in t.name and not nextn(t.name)]
    assert groups["routed experts"]["bytes"] == sum(int(t.n_bytes) for t in experts)
    assert sum(groups["routed experts"]["types"].values()) == groups["routed experts"]["bytes"]
    assert set(groups["routed experts"]["types"]) == {t.tensor_type.name for t in experts}


def nextn(name: str) -> bool:
    return name.startswith(f"blk.{SHAPES['tiny'].layers}.")


def test_active_bytes_of_a_token(model_file: ModelFile) -> None:
    path, shape = model_file("tiny", "Q4_K"), SHAPES["tiny"]
    report = inspect_file(path)
    expected = 0
    for tensor in gguf.GGUFReader(path).tensors:
        size = int(tensor.n_bytes)
        if nextn(tensor.name):
            continue
        if tensor.name == "token_embd.weight":
            size //= shape.vocab
        elif "_exps" in tensor.name:
            size = size * report["config"]["experts_used"] // report["config"]["experts"]
        expected += size
    assert report["active_bytes_per_token"] == expected
    assert 0 < expected < report["bytes"]


def test_kv_bytes(model_file: ModelFile) -> None:
    report = inspect_file(model_file("tiny", "F32"))
    config = report["config"]
    width = config["kv_lora_rank"] + config["rope"]["dimension"]
    assert report["kv_bytes_per_token"]["f32"] == config["layers"] * width * 4
    assert report["kv_bytes_per_token"]["f16"] == config["layers"] * width * 2
    assert report["kv_bytes_per_token"]["q8_0"] == config["layers"] * width // 32 * 34


def test_report_is_json_and_text_names_everything(model_file: ModelFile) -> None:
    report = inspect_file(model_file("tiny", "Q4_K"))
    assert json.loads(json.dumps(report)) == report
    text = describe(report)
    for word in [*report["groups"], *report["metadata"], "Q4_K", "KV cache per token", "experts used = "]:
        assert word in text
    assert max(map(len, text.splitlines())) < 250


def test_split_files_are_one_model(model_file: ModelFile) -> None:
    whole, split = (inspect_file(model_file("tiny", "Q4_K", **more)) for more in ({}, {"split_tensors": 20}))
    assert len(split["files"]) > 2
    assert split["groups"] == whole["groups"]
    assert f"in {len(split['files'])} files" in describe(split)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("token_embd.weight", "embedding"),
        ("output.weight", "head"),
        ("output_norm.weight", "router and norms"),
        ("blk.1.attn_kv_a_norm.weight", "router and norms"),
        ("blk.1.ffn_gate_inp.weight", "router and norms"),
        ("blk.1.exp_probs_b.bias", "router and norms"),
        ("blk.1.attn_k_b.weight", "attention"),
        ("blk.1.ffn_up_shexp.weight", "shared expert"),
        ("blk.1.ffn_up_exps.weight", "routed experts"),
        ("blk.0.ffn_up.weight", "dense FFN"),
        ("blk.4.attn_k_b.weight", "nextn"),
        ("blk.3.nextn.eh_proj.weight", "nextn"),
        ("blk.1.surprise.weight", "other"),
        ("rope_freqs.weight", "other"),
    ],
)
def test_groups(name: str, group: str) -> None:
    assert group_of(name, 4) == group


def write_file(path: Path, architecture: str, type: gguf.GGMLQuantizationType) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_chat_template("{{ line }}\n" * 100)
    writer.add_array("numbers", [1.5, 2.5] * 20)
    size = gguf.GGML_QUANT_SIZES[type][1]
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((4, 8, size), np.uint8), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_hetero_cannot_run_is_inspected(tmp_path: Path) -> None:
    report = inspect_file(write_file(tmp_path / "x.gguf", "llama", gguf.GGMLQuantizationType.IQ1_S))
    assert report["config"] is None and report["active_bytes_per_token"] is None
    assert "llama" in report["refused"]
    assert report["groups"]["routed experts"]["types"] == {"IQ1_S": 4 * 8 * 50}
    assert report["metadata"]["numbers"] == {"length": 40, "first": [1.5, 2.5] * 4}
    text = describe(report)
    assert "hetero cannot run this file" in text and "IQ1_S" in text
    assert re.search(r"numbers = \[40 items\]", text) and "{{ line }}\\n" in text


def test_a_hostile_file_neither_steers_the_terminal_nor_breaks_json(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama\x1b[2J")
    writer.add_name("\x1b]0;evil\x07\nname")
    writer.add_float32("nan", math.nan)
    writer.add_array("infinite", [math.inf, 1.0])
    writer.add_tensor("t", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = inspect_file(tmp_path / "x.gguf")
    json.dumps(report, allow_nan=False)
    text = describe(report)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.startswith(r"\x1b]0;evil\x07\nname: llama\x1b[2J, ")


def test_missing_keys_are_shown_as_inferred(model_file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from hetero import inspect
    from hetero.config import ModelConfig

    path = model_file("tiny", "Q4_K")
    with inspect.open_gguf(path) as file:
        config = replace(ModelConfig.from_gguf(file), inferred=("deepseek2.expert_gating_func",))
    monkeypatch.setattr(ModelConfig, "from_gguf", lambda file: config)
    report = inspect_file(path)
    assert report["inferred"] == ["deepseek2.expert_gating_func"]
    assert "inferred, not in the file: deepseek2.expert_gating_func" in describe(report)


def test_a_type_without_a_kernel_is_a_reason_to_refuse(model_file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_file("tiny", "Q4_K")
    assert inspect_file(path)["refused"] is None
    monkeypatch.setattr("hetero.inspect.SUPPORTED", frozenset({"F32"}))
    report = inspect_file(path)
    assert "there are kernels for F32" in report["refused"] and report["config"] is not None
    assert "hetero cannot run this file" in describe(report)
