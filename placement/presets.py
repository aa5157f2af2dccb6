"""Models that need no file to be planned for: their dimensions, and every tensor of their GGUF files.

Dimensions are those of the config.json that the makers publish: https://huggingface.co/deepseek-ai/DeepSeek-V2-Lite,
.../DeepSeek-V2, .../DeepSeek-V3, https://huggingface.co/moonshotai/Kimi-K2-Instruct. The layer for multi-token
prediction is left out, as converters of the time left it out.
"""

from difflib import get_close_matches

from placement.errors import PlacementError
from placement.model import Dimensions, Model, Tensor
from placement.quantization import QUANTIZATIONS, tensor_bytes, types_of

Shapes = dict[str, tuple[int, ...]]

_MLA = {"nextn_layers": 0, "kv_lora_rank": 512, "nope_dim": 128, "rope_dim": 64, "value_dim": 128}
_V3 = Dimensions(
    **_MLA,
    vocab_size=129_280,
    hidden_size=7168,
    layers=61,
    dense_layers=3,
    heads=128,
    q_lora_rank=1536,
    intermediate_size=18_432,
    expert_intermediate_size=2048,
    experts=256,
    experts_used=8,
    shared_experts=1,
    context_length=163_840,
)
MODELS = {
    "deepseek-v2-lite": Dimensions(
        **_MLA,
        vocab_size=102_400,
        hidden_size=2048,
        layers=27,
        dense_layers=1,
        heads=16,
        q_lora_rank=0,
        intermediate_size=10_944,
        expert_intermediate_size=1408,
        experts=64,
        experts_used=6,
        shared_experts=2,
        context_length=163_840,
    ),
    "deepseek-v2": Dimensions(
        **_MLA,
        vocab_size=102_400,
        hidden_size=5120,
        layers=60,
        dense_layers=1,
        heads=128,
        q_lora_rank=1536,
        intermediate_size=12_288,
        expert_intermediate_size=1536,
        experts=160,
        experts_used=6,
        shared_experts=2,
        context_length=163_840,
    ),
    "deepseek-v3": _V3,
    "kimi-k2": Dimensions(
        **_MLA,
        vocab_size=163_840,
        hidden_size=7168,
        layers=61,
        dense_layers=1,
        heads=64,
        q_lora_rank=1536,
        intermediate_size=18_432,
        expert_intermediate_size=2048,
        experts=384,
        experts_used=8,
        shared_experts=1,
        context_length=131_072,
    ),
}
ALIASES = {"deepseek-r1": "deepseek-v3", "deepseek-v3.1": "deepseek-v3"}
UNBIASED = ("deepseek-v2-lite", "deepseek-v2")  # their routers have no exp_probs_b


class UnknownPreset(PlacementError, ValueError):
    """A name that no preset has."""


def names() -> tuple[str, ...]:
    """Of all presets, "deepseek-v3:q4_k_m" and so on, aliases left out."""
    return tuple(f"{model}:{quantization}" for model in MODELS for quantization in QUANTIZATIONS)


def canonical(name: str) -> tuple[str, str]:
    """Model and quantization of a preset's name, an alias or other case resolved. Raises UnknownPreset."""
    model, _, quantization = name.strip().lower().partition(":")
    model = ALIASES.get(model, model)
    if model in MODELS and quantization in QUANTIZATIONS:
        return model, quantization
    known = f"known are {', '.join([*MODELS, *ALIASES])}, each with :{', :'.join(QUANTIZATIONS)}"
    raise UnknownPreset(f"no preset {name!r:.80}", known, f"nearest: {_nearest(model, quantization)}")


def _nearest(model: str, quantization: str) -> str:
    model = (get_close_matches(model, [*MODELS, *ALIASES], 1, 0) or ["deepseek-v3"])[0]
    return f"{model}:{(get_close_matches(quantization, QUANTIZATIONS, 1, 0.4) or ['q4_k_m'])[0]}"


def note(name: str) -> str:
    """What people should know of a preset, often ""."""
    return QUANTIZATIONS[canonical(name)[1]].note


def preset(name: str, *, kv_b_split: bool = True) -> Model:
    """`name`: "deepseek-v3:q4_k_m". `kv_b_split` False: with one attn_kv_b, as files made before April 2025.

    Raises UnknownPreset, a ValueError: found, the known names, the nearest one.
    """
    model, quantization = canonical(name)
    return build(name.strip().lower(), MODELS[model], quantization, bias=model not in UNBIASED, kv_b_split=kv_b_split)


def build(name: str, dimensions: Dimensions, quantization: str, *, bias: bool, kv_b_split: bool = True) -> Model:
    """A model of any dimensions. `bias`: its router has exp_probs_b."""
    shapes = tensor_shapes(dimensions, bias=bias, kv_b_split=kv_b_split)
    types = types_of(quantization, shapes, dimensions.layers)
    tensors = (Tensor(t, types[t], shape, tensor_bytes(types[t], shape)) for t, shape in shapes.items())
    return Model(name, dimensions, tuple(tensors))


def tensor_shapes(d: Dimensions, *, bias: bool, kv_b_split: bool) -> Shapes:
    """Names and shapes, columns last, in the order in which converters write them."""
    shapes: Shapes = {
        "token_embd.weight": (d.vocab_size, d.hidden_size),
        "output_norm.weight": (d.hidden_size,),
        "output.weight": (d.vocab_size, d.hidden_size),
    }
    for layer in range(d.layers):
        feed_forward = _gated("", d, d.intermediate_size) if layer < d.dense_layers else _mixture(d, bias)
        for part in (_attention(d, kv_b_split), {"ffn_norm.weight": (d.hidden_size,)}, feed_forward):
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in part.items()}
    return shapes


def _attention(d: Dimensions, kv_b_split: bool) -> Shapes:
    queries = d.heads * (d.nope_dim + d.rope_dim)
    shapes: Shapes = {"attn_norm.weight": (d.hidden_size,)}
    if d.q_lora_rank:
        shapes["attn_q_a.weight"] = d.q_lora_rank, d.hidden_size
        shapes["attn_q_a_norm.weight"] = (d.q_lora_rank,)
        shapes["attn_q_b.weight"] = queries, d.q_lora_rank
    else:
        shapes["attn_q.weight"] = queries, d.hidden_size
    shapes["attn_kv_a_mqa.weight"] = d.cache_width, d.hidden_size
    shapes["attn_kv_a_norm.weight"] = (d.kv_lora_rank,)
    if kv_b_split:
        shapes["attn_k_b.weight"] = d.heads, d.kv_lora_rank, d.nope_dim  # transposed
        shapes["attn_v_b.weight"] = d.heads, d.value_dim, d.kv_lora_rank
    else:
        shapes["attn_kv_b.weight"] = d.heads * (d.nope_dim + d.value_dim), d.kv_lora_rank
    shapes["attn_output.weight"] = d.hidden_size, d.heads * d.value_dim
    return shapes


def _mixture(d: Dimensions, bias: bool) -> Shapes:
    shapes: Shapes = {"ffn_gate_inp.weight": (d.experts, d.hidden_size)}
    if bias:
        shapes["exp_probs_b.bias"] = (d.experts,)
    width = d.expert_intermediate_size
    shapes |= {name: (d.experts, *shape) for name, shape in _gated("_exps", d, width).items()}
    return shapes | (_gated("_shexp", d, d.shared_experts * width) if d.shared_experts else {})


def _gated(suffix: str, d: Dimensions, width: int) -> Shapes:
    return {
        f"ffn_gate{suffix}.weight": (width, d.hidden_size),
        f"ffn_up{suffix}.weight": (width, d.hidden_size),
        f"ffn_down{suffix}.weight": (d.hidden_size, width),
    }
