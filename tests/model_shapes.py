"""What is in a test file: dimensions (`Shape`) and the tensors that follow from them, in file order."""

import dataclasses
import math
import zlib
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
    """Defaults are `tiny`: the true head sizes of MLA, everything else small, every feature of V3 on."""

    vocab: int = 512
    hidden: int = 256
    layers: int = 3
    dense_layers: int = 1
    nextn_layers: int = 0
    inter: int = 512  # dense FFN
    heads: int = 4
    q_lora: int = 256  # 0: one attn_q; llama.cpp then wants 26 or 27 layers
    kv_lora: int = 512
    rope_dim: int = 64
    nope_dim: int = 128
    value_dim: int = 128
    kv_b_split: bool = True  # False: one attn_kv_b, the layout of files made before April 2025
    experts: int = 16
    experts_used: int = 4
    shared_experts: int = 1
    moe_inter: int = 256
    groups: int = 4
    groups_used: int = 2
    gating: str = "sigmoid"
    expert_bias: bool = True
    weights_norm: bool = True
    weights_scale: float = 2.5
    yarn_factor: float = 40.0  # 1: plain rope
    mscale_all_dim: float = 1.0


V2_ROUTER = {"gating": "softmax", "expert_bias": False, "weights_norm": False, "mscale_all_dim": 0.707}
UNGROUPED = {"groups": 1, "groups_used": 1}
# 27 layers, as llama.cpp wants them of a file without q_lora, and thin enough for a test
LITE_LAYERS = {"layers": 27, "q_lora": 0, **UNGROUPED}
THIN = {"hidden": 64, "inter": 128, "heads": 2, "kv_lora": 128, "experts": 8, "moe_inter": 64, **LITE_LAYERS}

TINY = Shape()
SHAPES = {
    "tiny": TINY,
    "v2": Shape(**V2_ROUTER, weights_scale=16.0),
    "v2-ungrouped": Shape(**V2_ROUTER, **UNGROUPED, weights_scale=1.0),
    "v2-lite": Shape(**V2_ROUTER, **THIN, weights_scale=1.0, shared_experts=2),
    "moonlight": Shape(**THIN, weights_scale=2.446, yarn_factor=1.0),
    # longer rows, some not a multiple of 256
    "wide": Shape(
        hidden=768, layers=2, inter=1408, q_lora=512, experts=8, experts_used=2, moe_inter=352, groups=2, groups_used=1
    ),
    # V2-Lite's dimensions with V3's routing
    "lite": Shape(
        **LITE_LAYERS, vocab=102400, hidden=2048, inter=10944, heads=16,
        experts=64, experts_used=6, shared_experts=2, moe_inter=1408, weights_scale=2.446,
    ),
    # three layers of V3's dimensions, one of them dense
    "slice": Shape(
        vocab=8192, hidden=7168, inter=18432, heads=128, q_lora=1536,
        experts=256, experts_used=8, moe_inter=2048, groups=8, groups_used=4,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]  # numpy order: the last axis is the row
    std: float
    mean: float = 0.0
    keep_f32: bool = False  # norms, router, bias: never quantized

    def weights(self, seed: int) -> np.ndarray:
        rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(self.name.encode())]))
        return rng.standard_normal(self.shape, dtype=np.float32) * np.float32(self.std) + np.float32(self.mean)


@dataclasses.dataclass(frozen=True)
class UnsplitTensor(Tensor):
    """attn_kv_b [heads * (nope + value), kv_lora]: the very weights of the split layout's attn_k_b and attn_v_b."""

    k_b: Tensor = Tensor("", (), 0.0)
    v_b: Tensor = Tensor("", (), 0.0)

    def weights(self, seed: int) -> np.ndarray:
        k_b, v_b = self.k_b.weights(seed), self.v_b.weights(seed)
        return np.concatenate([k_b.transpose(0, 2, 1), v_b], axis=1).reshape(self.shape)


def matrix(name: str, *shape: int, gain: float = 1.0) -> Tensor:
    return Tensor(f"{name}.weight", shape, gain / math.sqrt(shape[-1]))


def norm(name: str, size: int) -> Tensor:
    return Tensor(f"{name}.weight", (size,), std=0.1, mean=1.0, keep_f32=True)


def attention_tensors(s: Shape, layer: str) -> Iterator[Tensor]:
    key_dim = s.nope_dim + s.rope_dim
    yield norm(layer + "attn_norm", s.hidden)
    if s.q_lora:
        yield matrix(layer + "attn_q_a", s.q_lora, s.hidden)
        yield norm(layer + "attn_q_a_norm", s.q_lora)
        yield matrix(layer + "attn_q_b", s.heads * key_dim, s.q_lora, gain=1.5)
    else:
        yield matrix(layer + "attn_q", s.heads * key_dim, s.hidden, gain=1.5)
    yield matrix(layer + "attn_kv_a_mqa", s.kv_lora + s.rope_dim, s.hidden)
    yield norm(layer + "attn_kv_a_norm", s.kv_lora)
    # attn_k_b lies transposed: the product it belongs to sums over kv_lora, not over its row
    k_b = matrix(layer + "attn_k_b", s.heads, s.kv_lora, s.nope_dim, gain=math.sqrt(s.nope_dim / s.kv_lora))
    v_b = matrix(layer + "attn_v_b", s.heads, s.value_dim, s.kv_lora)
    if s.kv_b_split:
        yield k_b
        yield v_b
    else:
        rows = s.heads * (s.nope_dim + s.value_dim)
        yield UnsplitTensor(layer + "attn_kv_b.weight", (rows, s.kv_lora), std=0.0, k_b=k_b, v_b=v_b)
    yield matrix(layer + "attn_output", s.hidden, s.heads * s.value_dim)


def ffn_tensors(s: Shape, layer: str, dense: bool) -> Iterator[Tensor]:
    yield norm(layer + "ffn_norm", s.hidden)
    if dense:
        yield matrix(layer + "ffn_gate", s.inter, s.hidden)
        yield matrix(layer + "ffn_up", s.inter, s.hidden)
        yield matrix(layer + "ffn_down", s.hidden, s.inter)
        return
    yield dataclasses.replace(matrix(layer + "ffn_gate_inp", s.experts, s.hidden), keep_f32=True)
    if s.expert_bias:
        yield Tensor(layer + "exp_probs_b.bias", (s.experts,), std=0.05, keep_f32=True)
    yield matrix(layer + "ffn_gate_exps", s.experts, s.moe_inter, s.hidden)
    yield matrix(layer + "ffn_up_exps", s.experts, s.moe_inter, s.hidden)
    yield matrix(layer + "ffn_down_exps", s.experts, s.hidden, s.moe_inter)
    shared = s.shared_experts * s.moe_inter
    yield matrix(layer + "ffn_gate_shexp", shared, s.hidden)
    yield matrix(layer + "ffn_up_shexp", shared, s.hidden)
    yield matrix(layer + "ffn_down_shexp", s.hidden, shared)


def tensors(s: Shape) -> Iterator[Tensor]:
    yield Tensor("token_embd.weight", (s.vocab, s.hidden), std=1.0)
    yield norm("output_norm", s.hidden)
    yield matrix("output", s.vocab, s.hidden, gain=2.0)
    for i in range(s.layers + s.nextn_layers):
        layer = f"blk.{i}."
        yield from attention_tensors(s, layer)
        yield from ffn_tensors(s, layer, dense=i < s.dense_layers)
        if i >= s.layers:
            yield matrix(layer + "nextn.eh_proj", s.hidden, 2 * s.hidden)
            yield norm(layer + "nextn.enorm", s.hidden)
            yield norm(layer + "nextn.hnorm", s.hidden)
