"""A `deepseek2` model of 4 KB with every feature on: its metadata, its config, its file."""

import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hetero.config import ModelConfig
from hetero.gguf import GGUFFile, Tensor
from hetero.tensors import expected_tensors
from tests.raw_gguf import STRING_KIND, U32_KIND, header, key, string, tensor, u32

F32_KIND, BOOL_KIND = 6, 7

METADATA: dict[str, Any] = {
    "general.architecture": "deepseek2",
    "general.name": "small",
    **{
        f"deepseek2.{name}": value
        for name, value in {
            "block_count": 2,
            "context_length": 64,
            "embedding_length": 8,
            "feed_forward_length": 8,
            "leading_dense_block_count": 1,
            "vocab_size": 16,
            "attention.head_count": 2,
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": 4,
            "attention.kv_lora_rank": 4,
            "attention.key_length": 6,
            "attention.value_length": 4,
            "attention.key_length_mla": 5,
            "attention.value_length_mla": 3,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "expert_feed_forward_length": 8,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_shared_count": 1,
            "expert_group_count": 2,
            "expert_group_used_count": 1,
            "expert_gating_func": 2,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "rope.dimension_count": 2,
            "rope.freq_base": 10_000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 40.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_log_multiplier": 0.1,
        }.items()
    },
}


def fake_file(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]], type: str = "F32") -> GGUFFile:
    """A file that was never opened; its tensors have shapes and no bytes."""
    tensors = {name: Tensor(name, shape, type, np.zeros(0, np.uint8)) for name, shape in shapes.items()}
    return GGUFFile((Path("model.gguf"),), metadata, tensors, 0)


def small_config(metadata: dict[str, Any] = METADATA) -> ModelConfig:
    return ModelConfig.from_gguf(fake_file(metadata, {"blk.1.exp_probs_b.bias": (4,)}))


def raw_key(name: str, value: Any) -> bytes:
    match value:
        case bool():
            return key(name, BOOL_KIND, bytes([value]))
        case int():
            return key(name, U32_KIND, u32(value))
        case float():
            return key(name, F32_KIND, struct.pack("<f", value))
        case _:
            return key(name, STRING_KIND, string(value))


def small_model() -> bytes:
    tensors, offset = [], 0
    for name, shape in expected_tensors(small_config()).items():
        tensors.append(tensor(name, shape[::-1], 0, offset))
        offset += -(-4 * prod(shape) // 32) * 32
    return header([raw_key(*item) for item in METADATA.items()], tensors) + bytes(offset)
