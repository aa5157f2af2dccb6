"""What the model is (`ModelConfig`, from the file) and what the caller wants (`RunConfig`): both frozen, unknown is an error."""

from dataclasses import dataclass
from typing import Literal

CACHE_TYPES = ("f32", "f16", "q8_0")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding with YaRN (arXiv 2309.00071); `factor` 1 means plain rope."""

    dimension: int
    base: float
    factor: float = 1.0
    original_context: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0  # 0.1 * mscale_all_dim of the original config


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of a `deepseek2` file. Layer counts exclude the trailing multi-token-prediction layers."""

    name: str
    vocab_size: int
    context_length: int
    hidden_size: int
    layers: int
    dense_layers: int  # leading layers with a dense FFN
    nextn_layers: int  # trailing multi-token-prediction layers, not part of `layers`
    rms_eps: float
    heads: int
    q_lora_rank: int  # 0: one attn_q instead of attn_q_a, attn_q_b
    kv_lora_rank: int
    nope_dim: int
    value_dim: int
    kv_b_split: bool  # attn_k_b + attn_v_b; False: the older attn_kv_b
    rope: RopeConfig
    intermediate_size: int
    expert_intermediate_size: int
    experts: int
    experts_used: int
    shared_experts: int
    expert_groups: int
    expert_groups_used: int
    group_score: Literal["top2", "max"]
    gating: Literal["softmax", "sigmoid"]
    expert_bias: bool
    expert_weights_norm: bool
    expert_weights_scale: float
    inferred: tuple[str, ...] = ()  # keys the file lacks, completed from the table of known models


@dataclass(frozen=True)
class RunConfig:
    """The caller's settings; the same names are kebab-case flags of the commands."""

    context: int | None = None  # tokens; None: min(model's context, 8192)
    sequences: int = 1
    kv: Literal["f32", "f16", "q8_0"] = "f16"
    threads: int | None = None  # None: one per physical core this process may use
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpu_memory: int | None = None  # bytes
    memory: int | None = None  # bytes
    mmap: bool | None = None
    plan: str | None = None
    graph: bool | None = None
    sessions: str | None = None
