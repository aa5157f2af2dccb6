"""Presets against what is published, what llama.cpp's quantizer does, and what the runtime expects of a file."""

import ctypes
import os
import re
from collections import Counter
from math import prod
from pathlib import Path

import gguf
import llama_cpp as llama
import numpy as np
import pytest

from hetero.quant_types import QUANT
from placement.model import Dimensions, Model
from placement.presets import ALIASES, MODELS, UNBIASED, UnknownPreset, build, canonical, names, note, preset
from placement.quantization import BLOCKS, FALLBACK, FP8, QUANTIZATIONS, tensor_bytes
from tests.llama_engine import SILENT
from tests.model_files import add_metadata
from tests.model_shapes import Shape, tensors

GIB = 2**30
BARTOWSKI_V3 = "https://huggingface.co/bartowski/deepseek-ai_DeepSeek-V3-0324-GGUF"
UNSLOTH_R1 = "https://huggingface.co/unsloth/DeepSeek-R1-GGUF"  # its sizes are rounded
WK_B = "https://github.com/ikawrakow/ik_llama.cpp/pull/259"
# Preset, published bytes, source. All but Kimi-K2 are of the time of the unsplit attn_kv_b.
PUBLISHED = [
    ("deepseek-v3:q8_0", 664.29 * GIB, WK_B),
    ("deepseek-v3:q8_0", 713.29e9, BARTOWSKI_V3),
    ("deepseek-v3:q6_k", 550.80e9, BARTOWSKI_V3),
    ("deepseek-v3:q5_k_m", 475.40e9, BARTOWSKI_V3),
    ("deepseek-v3:q4_k_m", 376.65 * GIB, WK_B),
    ("deepseek-v3:q4_k_m", 404.43e9, BARTOWSKI_V3),
    ("deepseek-v3:q4_k_s", 353.90 * GIB, "https://github.com/ikawrakow/ik_llama.cpp/pull/180"),
    ("deepseek-v3:q3_k_m", 298 * GIB, UNSLOTH_R1),
    ("deepseek-v3:q2_k", 228 * GIB, UNSLOTH_R1 + " as Q2_K_L: Q2_K but for a Q4_K embedding"),
    ("deepseek-r1:ud-q2_k_xl", 211.03 * GIB, WK_B),
    ("deepseek-v2:q4_k_m", 133 * GIB, "https://github.com/kvcache-ai/ktransformers README, DeepSeek-V2 and V2.5"),
    (
        "deepseek-v2:q3_k_m",
        112_665_528_128,
        "https://huggingface.co/bartowski/DeepSeek-Coder-V2-Instruct-GGUF/tree/899b543bb21c3a4c146139a7e52c5deb47ad20e3",
    ),
    ("deepseek-v2-lite:q8_0", 15.55 * GIB, "https://github.com/ikawrakow/ik_llama.cpp/pull/307"),
    (
        "deepseek-v2-lite:q4_k_m",
        10_364_416_768,
        "DeepSeek-V2-Lite-Chat.Q4_K_M.gguf of https://huggingface.co/mradermacher/DeepSeek-V2-Lite-Chat-GGUF",
    ),
    (
        "deepseek-v2-lite:q3_k_m",
        8_126_607_104,
        "https://huggingface.co/bartowski/DeepSeek-Coder-V2-Lite-Instruct-GGUF/tree/8f248fa2072348f77a8bc37754e470de1f61866e",
    ),
    ("kimi-k2:q8_0", 1.09e12, "https://docs.unsloth.ai/basics/kimi-k2-how-to-run-locally"),
]
FTYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q3_k_m", "q2_k", "iq1_s")
LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\S+), size = .*? MiB(?: -> +([\d.]+) MiB \((\S+)\))?")


def shape_of(d: Dimensions, *, bias: bool = True, kv_b_split: bool = True) -> Shape:
    return Shape(
        vocab=d.vocab_size, hidden=d.hidden_size, layers=d.layers, dense_layers=d.dense_layers,
        inter=d.intermediate_size, heads=d.heads, q_lora=d.q_lora_rank, kv_lora=d.kv_lora_rank, rope_dim=d.rope_dim,
        nope_dim=d.nope_dim, value_dim=d.value_dim, kv_b_split=kv_b_split, experts=d.experts,
        experts_used=d.experts_used, shared_experts=d.shared_experts, moe_inter=d.expert_intermediate_size,
        groups=1, groups_used=1, expert_bias=bias,
    )  # fmt: skip


def sparse_file(path: Path, shape: Shape) -> None:
    """A 16-bit model as converters write it, of true size, that takes no room: nothing is stored after its header."""
    writer = gguf.GGUFWriter(path, "deepseek2")
    add_metadata(writer, shape)
    size = 0
    for tensor in tensors(shape):
        kind = np.dtype(np.float32 if tensor.keep_f32 else np.float16)
        nbytes = prod(tensor.shape) * kind.itemsize
        writer.add_tensor_info(tensor.name, tensor.shape, kind, nbytes)
        size += -(-nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-os.path.getsize(path) // 32) * 32 + size)


def quantized(path: Path, quantization: str) -> tuple[dict[str, str], float]:
    """Type of each tensor, and MiB of all, that llama.cpp's quantizer would write: a dry run of the real one."""
    heard: list[str] = []

    @llama.llama_log_callback
    def listen(level: int, text: bytes, user: ctypes.c_void_p) -> None:
        heard.append(text.decode())

    settings = llama.llama_model_quantize_default_params()
    settings.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{quantization.upper()}")
    settings.dry_run, settings.nthread = True, 1
    llama.llama_log_set(listen, ctypes.c_void_p(0))
    try:
        assert llama.llama_model_quantize(str(path).encode(), b"/dev/null", ctypes.byref(settings)) == 0
    finally:
        llama.llama_log_set(SILENT, ctypes.c_void_p(0))
    text = "".join(heard)
    found = {name: (after or before).upper() for name, before, _, after in LINE.findall(text)}
    total = re.search(r"quant size += +([\d.]+) MiB", text)
    assert total is not None, text[-500:]
    return found, float(total[1])


@pytest.mark.parametrize("kv_b_split", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_types_are_those_of_the_real_quantizer(model: str, kv_b_split: bool, tmp_path: Path) -> None:
    path, bias = tmp_path / "model.gguf", model not in UNBIASED
    sparse_file(path, shape_of(MODELS[model], bias=bias, kv_b_split=kv_b_split))
    for quantization in FTYPES:
        types, mebibytes = quantized(path, quantization)
        ours = preset(f"{model}:{quantization}", kv_b_split=kv_b_split)
        assert {tensor.name: tensor.type for tensor in ours.tensors} == types, quantization
        assert ours.nbytes / 2**20 == pytest.approx(mebibytes, abs=0.01)


def test_rows_of_any_width_fall_back_as_in_the_real_quantizer(tmp_path: Path) -> None:
    """Rows of 256, 96 (whole blocks of 32) and 40 values (of none), more layers than an eighth of them."""
    d = Dimensions(
        vocab_size=64, hidden_size=256, layers=27, dense_layers=2, nextn_layers=0, heads=2, q_lora_rank=0,
        kv_lora_rank=96, nope_dim=40, rope_dim=32, value_dim=16, intermediate_size=96, expert_intermediate_size=40,
        experts=4, experts_used=2, shared_experts=1, context_length=64,
    )  # fmt: skip
    path = tmp_path / "model.gguf"
    sparse_file(path, shape_of(d))
    for quantization in FTYPES[1:]:  # nothing falls back from Q8_0: the quantizer refuses such a file
        types, _ = quantized(path, quantization)
        ours = build("odd", d, quantization, bias=True)
        assert {tensor.name: tensor.type for tensor in ours.tensors} == types, quantization
        assert {"F16", FALLBACK[QUANTIZATIONS[quantization].base]} <= set(types.values())


@pytest.mark.parametrize(("name", "nbytes", "source"), PUBLISHED, ids=[f"{row[0]}-{row[1]:.3g}" for row in PUBLISHED])
def test_sizes_are_the_published_ones(name: str, nbytes: float, source: str) -> None:
    model = preset(name, kv_b_split=name.startswith("kimi"))
    assert model.nbytes == pytest.approx(nbytes, rel=0.01), source


def test_the_dynamic_recipe_is_that_of_the_published_file() -> None:
    """Counts, and MiB of routed experts, embedding and rest, as a loader printed them (WK_B)."""
    model = preset("deepseek-r1:ud-q2_k_xl", kv_b_split=False)
    types = Counter(tensor.type for tensor in model.tensors)
    assert types == {"F32": 361, "Q2_K": 171, "Q3_K": 3, "Q4_K": 306, "Q6_K": 184}
    parts = model.by_part
    routed, embedding = (sum(t.nbytes for t in parts[part]) / 2**20 for part in ("routed experts", "embedding"))
    assert routed == 205_716 and embedding == pytest.approx(497.11, abs=0.01)
    assert model.nbytes / 2**20 - routed - embedding == pytest.approx(9885.95, abs=0.01)


@pytest.mark.parametrize(
    ("model", "billions"),
    [("deepseek-v2-lite", 15.71), ("deepseek-v2", 235.74), ("deepseek-v3", 671.03), ("kimi-k2", 1026.41)],
)
def test_parameters(model: str, billions: float) -> None:
    """As llama.cpp counts them in the files (Kimi-K2: https://github.com/ikawrakow/ik_llama.cpp/pull/616)."""
    weights = sum(tensor.weights for tensor in preset(f"{model}:q8_0").tensors)
    assert weights / 1e9 == pytest.approx(billions, abs=0.005)


def test_fp8() -> None:
    """One byte a weight and a scale for each tile of 128 x 128; embedding and head in BF16; to plan with only."""
    model = preset("deepseek-v3:fp8")
    wide = {t.type for t in model.tensors if t.name in ("token_embd.weight", "output.weight")}
    assert wide == {"BF16"} and note("deepseek-v3:fp8").startswith("no kernel yet")
    assert tensor_bytes(FP8, (2, 130, 256)) == 2 * (130 * 256 + 4 * 2 * 2)
    assert FP8 not in QUANT, "no GGUF type: it cannot be run by mistake"


def test_blocks_are_those_of_the_file_format() -> None:
    for type, block in BLOCKS.items():
        assert QUANT[type][1:] == block == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]


def test_names() -> None:
    assert len(names()) == 40 and all(isinstance(preset(name, kv_b_split=True), Model) for name in names()[:10])
    for alias, model in ALIASES.items():
        assert preset(f"{alias}:Q2_K").tensors == preset(f"{model}:q2_k").tensors
    assert preset("DeepSeek-R1:q4_k_m").name == "deepseek-r1:q4_k_m"
    assert note("deepseek-v3:q4_k_m") == ""


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("deepseek-v3:q3_k", "deepseek-v3:q3_k_m"),
        ("deepseekv3:q4km", "deepseek-v3:q4_k_m"),
        ("deepseek-v3", "deepseek-v3:q4_k_m"),
        ("kimi:q2_k", "kimi-k2:q2_k"),
        ("", "q4_k_m"),
        ("deepseek-v3:q4_k_m:1", "deepseek-v3:q4_k_m"),
    ],
)
def test_unknown_names(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="no preset") as caught:
        canonical(name)
    assert isinstance(caught.value, UnknownPreset) and repr(name) in caught.value.found
    assert all(known in caught.value.limit for known in (*MODELS, *ALIASES, *QUANTIZATIONS))
    assert caught.value.remedy.startswith("nearest: ") and caught.value.remedy.endswith(nearest)
