"""Writes small `deepseek2` GGUF files with random weights, as llama.cpp's converter and quantizer would.

    python -m tests.model_files tiny tiny.gguf --type q4_k     every feature of V3, small: 42 MB in f32
    python -m tests.model_files lite lite.gguf                 10.4 GB: V2-Lite's dimensions, V3's routing, Q4_K_M
    python -m tests.model_files slice slice.gguf               14.3 GB: three layers of V3's dimensions, Q4_K_M

Every tensor is drawn from (seed, name): the same shape, type and seed give the same bytes.
"""

import argparse
import ctypes
import functools
import math
import zlib
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from benchmarks.ggml_library import libraries
from tests.model_shapes import SHAPES, Shape, Tensor, tensors
from tests.random_blocks import random_blocks
from tests.vocabulary import add_vocabulary

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
TYPES += ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
# what llama-quantize takes for a row that is not a multiple of 256
FALLBACK = {Type.Q2_K: Type.IQ4_NL, Type.Q3_K: Type.IQ4_NL, Type.IQ4_XS: Type.IQ4_NL}
FALLBACK |= {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


def add_metadata(w: gguf.GGUFWriter, s: Shape) -> None:
    w.add_type(gguf.GGUFType.MODEL)
    w.add_name("random weights")
    w.add_quantization_version(2)
    w.add_block_count(s.layers + s.nextn_layers)
    w.add_context_length(163840)
    w.add_embedding_length(s.hidden)
    w.add_feed_forward_length(s.inter)
    w.add_head_count(s.heads)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_leading_dense_block_count(s.dense_layers)
    w.add_vocab_size(s.vocab)
    if s.nextn_layers:
        w.add_nextn_predict_layers(s.nextn_layers)
    if s.q_lora:
        w.add_q_lora_rank(s.q_lora)
    w.add_kv_lora_rank(s.kv_lora)
    if s.kv_b_split:  # MLA is described as multi-query attention: one latent head; the true head sizes go beside it
        w.add_head_count_kv(1)
        w.add_key_length(s.kv_lora + s.rope_dim)
        w.add_value_length(s.kv_lora)
        w.add_key_length_mla(s.nope_dim + s.rope_dim)
        w.add_value_length_mla(s.value_dim)
    else:
        w.add_head_count_kv(s.heads)
        w.add_key_length(s.nope_dim + s.rope_dim)
        w.add_value_length(s.value_dim)
    add_expert_metadata(w, s)
    w.add_rope_dimension_count(s.rope_dim)
    w.add_rope_freq_base(10000.0)
    if s.yarn_factor > 1:
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(s.yarn_factor)
        w.add_rope_scaling_orig_ctx_len(4096)
        w.add_rope_scaling_yarn_beta_fast(32.0)
        w.add_rope_scaling_yarn_beta_slow(1.0)
        w.add_rope_scaling_yarn_log_mul(0.1 * s.mscale_all_dim)


def add_expert_metadata(w: gguf.GGUFWriter, s: Shape) -> None:
    w.add_expert_feed_forward_length(s.moe_inter)
    w.add_expert_count(s.experts)
    w.add_expert_used_count(s.experts_used)
    w.add_expert_shared_count(s.shared_experts)
    w.add_expert_weights_scale(s.weights_scale)
    if s.groups == 1 and s.gating == "softmax":
        return  # V2-Lite files of 2024 have none of the keys below
    w.add_expert_group_count(s.groups)
    w.add_expert_group_used_count(s.groups_used)
    w.add_expert_weights_norm(s.weights_norm)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType[s.gating.upper()])


def stored_type(t: Tensor, wanted: Type) -> Type:
    if t.keep_f32:
        return Type.F32
    return wanted if t.shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else FALLBACK[wanted]


def mixture_type(t: Tensor, s: Shape) -> Type:
    """llama-quantize's Q4_K_M: more bits for the output and for half of the down projections."""
    wanted = Type.Q4_K
    if t.name == "output.weight":
        wanted = Type.Q6_K
    elif "ffn_down" in t.name:
        layer, eighth = int(t.name.split(".")[1]), s.layers // 8
        if layer < eighth or layer >= 7 * s.layers // 8 or (layer - eighth) % 3 == 2:
            wanted = Type.Q6_K
    return stored_type(t, wanted)


@functools.cache
def ggml() -> ctypes.CDLL:
    """llama-cpp-python's ggml, for the quantizers that the gguf package lacks."""
    library, _ = libraries()
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    return library


def quantize(weights: np.ndarray, type: Type) -> np.ndarray:
    """f32 [..., columns] -> the type's bytes, [..., row bytes]."""
    try:
        return np.ascontiguousarray(gguf.quants.quantize(weights, type)).view(np.uint8)
    except NotImplementedError:
        columns = weights.shape[-1]
        values, width = GGML_QUANT_SIZES[type]
        out = np.empty((*weights.shape[:-1], columns // values * width), np.uint8)
        rows = weights.size // columns
        ggml().ggml_quantize_chunk(type, weights.ctypes.data, out.ctypes.data, 0, rows, columns, None)
        return out


class Payload:
    """A tensor's bytes, made while they are written: what GGUFWriter.write_tensor_data needs of an array."""

    def __init__(self, tensor: Tensor, type: Type, seed: int, from_blocks: bool):
        self.tensor, self.type, self.seed, self.from_blocks = tensor, type, seed, from_blocks
        values, width = GGML_QUANT_SIZES[type]
        self.nbytes = math.prod(tensor.shape) // values * width

    def tofile(self, file) -> None:
        t = self.tensor
        if self.from_blocks and not t.keep_f32:
            rng = np.random.Generator(np.random.SFC64([self.seed, zlib.crc32(t.name.encode())]))
            for chunk in random_blocks(rng, self.type, math.prod(t.shape), t.std):
                file.write(chunk)
        else:
            file.write(quantize(t.weights(self.seed), self.type))


def write(path: Path, shape: Shape, type: str = "F32", *, seed: int = 1, split_tensors: int = 0) -> None:
    """`type` is one of TYPES, quantized from the f32 weights of (shape, seed); or "Q4_K_M": random blocks.

    With `split_tensors`, that many tensors a file: PATH becomes PATH-00001-of-000NN.gguf and so on.
    """
    writer = gguf.GGUFWriter(path, "deepseek2", split_max_tensors=split_tensors)
    add_metadata(writer, shape)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M if type == "Q4_K_M" else gguf.LlamaFileType.GUESSED)
    add_vocabulary(writer, shape.vocab)
    from_blocks = type == "Q4_K_M"
    payloads = [
        Payload(t, mixture_type(t, shape) if from_blocks else stored_type(t, Type[type]), seed, from_blocks)
        for t in tensors(shape)
    ]
    for p in payloads:
        writer.add_tensor_info(p.tensor.name, p.tensor.shape, np.dtype(np.float32), p.nbytes, raw_dtype=p.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for p in payloads:
        writer.write_tensor_data(p, gguf.GGUFEndian.LITTLE)  # type: ignore[arg-type]
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", type=str.upper, choices=[*TYPES, "Q4_K_M"], help="default: Q4_K_M for lite and slice")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split-tensors", type=int, default=0, metavar="N", help="N tensors a file")
    a = parser.parse_args()
    type = a.type or ("Q4_K_M" if a.shape in ("lite", "slice") else "F32")
    write(a.out, SHAPES[a.shape], type, seed=a.seed, split_tensors=a.split_tensors)


if __name__ == "__main__":
    main()
