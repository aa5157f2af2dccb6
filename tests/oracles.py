"""transformers' DeepSeek-V3 and V2, in float64, with the weights of a GGUF file."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

MLP = ("gate", "up", "down")
torch.set_num_threads(1)  # for models this small two threads cost more than they bring, and far more on a busy machine


class Transformers:
    """Called with T token ids: float64 logits [T, vocab]. `model` is theirs, to be broken by tests of the tests."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            return self.model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()


class Weights:
    """A GGUF through the gguf package: metadata by key, tensors dequantized to float64."""

    def __init__(self, path: Path):
        self.reader = gguf.GGUFReader(path)
        self.tensors = {t.name: t for t in self.reader.tensors}

    def value(self, key: str, default=None):
        field = self.reader.get_field(f"deepseek2.{key}")
        return default if field is None else field.contents()

    def __call__(self, name: str) -> torch.Tensor:
        t = self.tensors[name]
        return torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64))


def shared_config(w: Weights) -> dict:
    """What both generations' configurations call by the same names."""
    value, rope_dim = w.value, w.value("rope.dimension_count")
    rope = {"rope_type": "default", "rope_theta": value("rope.freq_base")}
    if value("rope.scaling.type") == "yarn":
        mscale = 10.0 * value("rope.scaling.yarn_log_multiplier")
        rope |= {
            "rope_type": "yarn",
            "factor": value("rope.scaling.factor"),
            "mscale": mscale,
            "mscale_all_dim": mscale,
        }
        rope |= {name: value(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        rope |= {"original_max_position_embeddings": value("rope.scaling.original_context_length")}
    return dict(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        moe_intermediate_size=value("expert_feed_forward_length"),
        num_hidden_layers=value("block_count") - value("nextn_predict_layers", 0),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count"),
        n_shared_experts=value("expert_shared_count"),
        n_routed_experts=value("expert_count"),
        num_experts_per_tok=value("expert_used_count"),
        n_group=value("expert_group_count", 1),
        topk_group=value("expert_group_used_count", 1),
        routed_scaling_factor=value("expert_weights_scale"),
        norm_topk_prob=value("expert_weights_norm", False),
        first_k_dense_replace=value("leading_dense_block_count"),
        kv_lora_rank=value("attention.kv_lora_rank"),
        q_lora_rank=value("attention.q_lora_rank"),
        qk_rope_head_dim=rope_dim,
        qk_nope_head_dim=value("attention.key_length_mla", value("attention.key_length")) - rope_dim,
        v_head_dim=value("attention.value_length_mla", value("attention.value_length")),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters=rope,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )


def attention_state(w: Weights, layer: str, c: PreTrainedConfig) -> dict[str, torch.Tensor]:
    state = {
        "kv_a_proj_with_mqa.weight": w(layer + "attn_kv_a_mqa.weight"),
        "kv_a_layernorm.weight": w(layer + "attn_kv_a_norm.weight"),
        "o_proj.weight": w(layer + "attn_output.weight"),
    }
    if c.q_lora_rank:
        state["q_a_proj.weight"] = w(layer + "attn_q_a.weight")
        state["q_a_layernorm.weight"] = w(layer + "attn_q_a_norm.weight")
        state["q_b_proj.weight"] = w(layer + "attn_q_b.weight")
    else:
        state["q_proj.weight"] = w(layer + "attn_q.weight")
    if layer + "attn_kv_b.weight" in w.tensors:
        state["kv_b_proj.weight"] = w(layer + "attn_kv_b.weight")
    else:  # [heads, kv_lora, nope] and [heads, value, kv_lora]
        k_b, v_b = w(layer + "attn_k_b.weight"), w(layer + "attn_v_b.weight")
        state["kv_b_proj.weight"] = torch.cat([k_b.transpose(1, 2), v_b], 1).reshape(-1, c.kv_lora_rank)
    return {f"self_attn.{name}": tensor for name, tensor in state.items()}


def mlp_state(w: Weights, layer: str, dense: bool) -> dict[str, torch.Tensor]:
    if dense:
        return {f"mlp.{n}_proj.weight": w(f"{layer}ffn_{n}.weight") for n in MLP}
    state = {f"mlp.shared_experts.{n}_proj.weight": w(f"{layer}ffn_{n}_shexp.weight") for n in MLP}
    state["mlp.gate.weight"] = w(layer + "ffn_gate_inp.weight")
    if layer + "exp_probs_b.bias" in w.tensors:
        state["mlp.gate.e_score_correction_bias"] = w(layer + "exp_probs_b.bias")
    gate, up = w(layer + "ffn_gate_exps.weight"), w(layer + "ffn_up_exps.weight")
    state["mlp.experts.gate_up_proj"] = torch.cat([gate, up], 1)
    state["mlp.experts.down_proj"] = w(layer + "ffn_down_exps.weight")
    return state


def load_weights(model: PreTrainedModel, w: Weights) -> Transformers:
    c = model.config
    c._experts_implementation = "eager"
    state = {
        "model.embed_tokens.weight": w("token_embd.weight"),
        "model.norm.weight": w("output_norm.weight"),
        "lm_head.weight": w("output.weight"),
    }
    for i in range(c.num_hidden_layers):
        layer = f"blk.{i}."
        block = {
            "input_layernorm.weight": w(layer + "attn_norm.weight"),
            "post_attention_layernorm.weight": w(layer + "ffn_norm.weight"),
            **attention_state(w, layer, c),
            **mlp_state(w, layer, dense=i < c.first_k_dense_replace),
        }
        state |= {f"model.layers.{i}.{name}": tensor for name, tensor in block.items()}
    model.double().eval().load_state_dict(state)  # strict: every weight of theirs comes from the file
    return Transformers(model)


def transformers_v3(path: Path) -> Transformers:
    """DeepseekV3ForCausalLM: sigmoid gating with bias, groups scored by their two best."""
    w = Weights(path)
    config = DeepseekV3Config(**shared_config(w), rope_interleave=True, num_mtp_layers=0)
    return load_weights(DeepseekV3ForCausalLM(config), w)


def transformers_v2(path: Path) -> Transformers:
    """DeepseekV2ForCausalLM: softmax gating without bias or normalisation, groups scored by their best."""
    w = Weights(path)
    shared = shared_config(w)
    method = "group_limited_greedy" if shared["n_group"] > 1 else "greedy"
    return load_weights(DeepseekV2ForCausalLM(DeepseekV2Config(**shared, topk_method=method)), w)


def transformers(path: Path) -> Transformers:
    """Whichever generation has the file's gating; a file without the key is V2."""
    sigmoid = Weights(path).value("expert_gating_func") == gguf.ExpertGatingFuncType.SIGMOID
    return transformers_v3(path) if sigmoid else transformers_v2(path)
