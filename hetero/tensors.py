"""Which tensors a `deepseek2` file must hold, and the check that it does, before anything is bound.

V vocabulary, D hidden size, H heads, N + R key dimensions of a head without and with rope, L latent (kv_lora_rank),
Q q_lora_rank, E experts, F their width
"""

import re
from collections.abc import Collection

from hetero.config import ModelConfig
from hetero.errors import FileError, UnsupportedError
from hetero.gguf import GGUFFile, Tensor

Shapes = dict[str, tuple[int, ...]]

REQUANTIZE = "take a file quantized as Q4_K_M, Q6_K or Q8_0, or requantize it with llama-quantize"
INCOMPLETE = "the file is incomplete or was converted wrongly: take another file of the model"
# buffers some converters keep; rope is computed from the metadata
IGNORED = re.compile(r"rope_freqs\.weight|blk\.\d+\.(attn_rot_embd|attn\.rotary_emb\.inv_freq)(\.weight)?")


def check_tensors(file: GGUFFile, config: ModelConfig, supported: Collection[str]) -> None:
    """`supported` names the types that have a kernel; vectors are F32 always."""
    source = file.paths[0].name
    expected = expected_tensors(config)
    for name, shape in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None and name == "output.weight":  # tied to token_embd
            continue
        if tensor is None:
            raise _missing(source, name, file)
        _check_tensor(source, tensor, shape, supported)
    skipped = tuple(f"blk.{layer}." for layer in range(config.layers, config.layers + config.nextn_layers))
    for name in file.tensors:
        if name in expected or name.startswith(skipped) or IGNORED.fullmatch(name):
            continue
        if not config.kv_b_split and name.endswith((".attn_k_b.weight", ".attn_v_b.weight")):
            continue  # copies of the two halves of attn_kv_b
        found = f"{source}: nothing is known to do with the tensor {name!r}"
        raise UnsupportedError(found, "a tensor left out would give wrong answers", "run this model with llama.cpp")


def expected_tensors(config: ModelConfig) -> Shapes:
    """Name and shape of every tensor of the main model; trailing multi-token-prediction layers are not part of it."""
    hidden = config.hidden_size
    shapes: Shapes = {
        "token_embd.weight": (config.vocab_size, hidden),  # [V, D]
        "output_norm.weight": (hidden,),
        "output.weight": (config.vocab_size, hidden),
    }
    for layer in range(config.layers):
        feed_forward = _dense(config) if layer < config.dense_layers else _mixture(config)
        for name, shape in (_attention(config) | feed_forward).items():
            shapes[f"blk.{layer}.{name}"] = shape
    return shapes


def _attention(config: ModelConfig) -> Shapes:
    hidden, heads, latent, q_rank = config.hidden_size, config.heads, config.kv_lora_rank, config.q_lora_rank
    queries = heads * (config.nope_dim + config.rope.dimension)
    shapes: Shapes = {
        "attn_norm.weight": (hidden,),
        "attn_kv_a_mqa.weight": (latent + config.rope.dimension, hidden),  # [L + R, D]
        "attn_kv_a_norm.weight": (latent,),
        "attn_output.weight": (hidden, heads * config.value_dim),
        "ffn_norm.weight": (hidden,),
    }
    if q_rank:
        shapes["attn_q_a.weight"] = (q_rank, hidden)  # [Q, D]
        shapes["attn_q_a_norm.weight"] = (q_rank,)
        shapes["attn_q_b.weight"] = (queries, q_rank)  # [H * (N + R), Q]
    else:
        shapes["attn_q.weight"] = (queries, hidden)
    if config.kv_b_split:
        shapes["attn_k_b.weight"] = (heads, latent, config.nope_dim)  # [H, L, N]: transposed
        shapes["attn_v_b.weight"] = (heads, config.value_dim, latent)
    else:
        shapes["attn_kv_b.weight"] = (heads * (config.nope_dim + config.value_dim), latent)
    return shapes


def _dense(config: ModelConfig) -> Shapes:
    return _gated("", config.hidden_size, config.intermediate_size)


def _mixture(config: ModelConfig) -> Shapes:
    hidden, width = config.hidden_size, config.expert_intermediate_size
    shapes: Shapes = {"ffn_gate_inp.weight": (config.experts, hidden)}  # [E, D]
    if config.expert_bias:
        shapes["exp_probs_b.bias"] = (config.experts,)
    shapes |= {name: (config.experts, *shape) for name, shape in _gated("_exps", hidden, width).items()}  # [E, F, D]
    if config.shared_experts:
        shapes |= _gated("_shexp", hidden, width * config.shared_experts)
    return shapes


def _gated(suffix: str, hidden: int, width: int) -> Shapes:
    return {
        f"ffn_gate{suffix}.weight": (width, hidden),
        f"ffn_up{suffix}.weight": (width, hidden),
        f"ffn_down{suffix}.weight": (hidden, width),
    }


def _check_tensor(source: str, tensor: Tensor, shape: tuple[int, ...], supported: Collection[str]) -> None:
    if tensor.shape != shape:
        found = f"{source}: the tensor {tensor.name!r} has the shape {list(tensor.shape)}"
        raise FileError(found, f"the metadata calls for {list(shape)}", INCOMPLETE)
    allowed = ("F32",) if len(shape) == 1 else supported
    if tensor.type not in allowed:
        found = f"{source}: the tensor {tensor.name!r} has the type {tensor.type}"
        raise UnsupportedError(found, f"there are kernels for {', '.join(sorted(allowed))}", REQUANTIZE)


def _missing(source: str, name: str, file: GGUFFile) -> FileError | UnsupportedError:
    joined = re.sub(r"ffn_(gate|up)_exps", "ffn_gate_up_exps", name)
    if joined != name and joined in file.tensors:
        found = f"{source}: gate and up of the experts are joined into {joined!r}"
        return UnsupportedError(found, "they are read as two tensors", "convert the model without joining them")
    return FileError(f"{source}: the tensor {name!r} is missing", f"it holds {len(file.tensors):,} tensors", INCOMPLETE)
