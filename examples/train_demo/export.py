"""Checkpoint -> GGUF: `python export.py --work DIR [--quant f32] [--out FILE]`.

Follows llama.cpp's converter for DeepseekV3ForCausalLM: attn_kv_b is split, its key half stored transposed; rope stays
interleaved; router, norms and the router's bias stay f32; the draft layer is the last block and counts in block_count.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from model import Model, Shape
from tokens import BOS, END_THINK, EOS, PAD, THINK

FILE_TYPE = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "mix": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def checkpoint(path: Path) -> Model:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = Model(Shape(**saved["shape"]))
    model.load_state_dict(saved["model"])
    return model.eval()


def tensors(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF name, array) in file order"""
    state, s = {n: t.float().numpy() for n, t in model.state_dict().items()}, model.s
    for name in ("token_embd", "output_norm", "output"):
        yield f"{name}.weight", state[name]
    for name, array in state.items():
        part = name.split(".")
        if part[0] == "blk":
            block = f"blk.{part[1]}"
        elif part[0] == "nextn":
            block = f"blk.{s.layers}"  # the draft layer follows the last block
        else:
            continue
        leaf = part[-1]
        if leaf == "attn_kv_b":  # [H * (N + V), C]
            heads = array.reshape(s.heads, s.nope + s.value, s.kv_lora)
            yield f"{block}.attn_k_b.weight", heads[:, : s.nope].transpose(0, 2, 1)  # [H, C, N]
            yield f"{block}.attn_v_b.weight", heads[:, s.nope :]  # [H, V, C]
        elif leaf == "exp_probs_b":
            yield f"{block}.exp_probs_b.bias", array
        elif part[0] == "nextn" and part[1] != "block":
            yield f"{block}.nextn.{leaf}.weight", array
        else:
            yield f"{block}.{leaf}.weight", array


def pick_type(name: str, array: np.ndarray, quant: str) -> Type:
    """mix: gate and up experts in Q4_K, down experts in Q6_K, the other matrices in Q8_0"""
    if quant == "f32" or array.ndim == 1 or "ffn_gate_inp" in name:
        return Type.F32
    if quant == "mix" and array.shape[-1] % 256 == 0:
        if "gate_exps" in name or "up_exps" in name:
            return Type.Q4_K
        if "down_exps" in name:
            return Type.Q6_K
    return Type.Q8_0


class Quantizer:
    """gguf's own quantizers, and llama.cpp's for the K formats, which gguf can only read."""

    def __init__(self) -> None:
        self.dll: ctypes.CDLL | None = None

    def __call__(self, array: np.ndarray, kind: Type) -> np.ndarray:
        array = np.ascontiguousarray(array, np.float32)
        if kind not in (Type.Q4_K, Type.Q6_K):
            return gguf.quants.quantize(array, kind)
        block, width = gguf.GGML_QUANT_SIZES[kind]
        out = np.empty((*array.shape[:-1], array.shape[-1] // block * width), np.uint8)
        rows = array.size // array.shape[-1]
        written = self.ggml().ggml_quantize_chunk(
            int(kind),
            array.ctypes.data_as(ctypes.c_void_p),
            out.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0),
            ctypes.c_int64(rows),
            ctypes.c_int64(array.shape[-1]),
            None,
        )
        assert written == out.nbytes, f"{kind.name}: {written} bytes written, {out.nbytes} expected"
        return out

    def ggml(self) -> ctypes.CDLL:
        if self.dll is None:
            import llama_cpp

            folder = Path(llama_cpp.__file__).parent / "lib"
            self.dll = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
            self.dll.ggml_quantize_chunk.restype = ctypes.c_size_t
        return self.dll


def add_shape(w: gguf.GGUFWriter, s: Shape) -> None:
    w.add_block_count(s.layers + 1)
    w.add_nextn_predict_layers(1)
    w.add_context_length(s.context)
    w.add_embedding_length(s.width)
    w.add_feed_forward_length(s.dense_inter)
    w.add_head_count(s.heads)
    w.add_head_count_kv(1)  # MLA is stored as multi-query attention
    w.add_key_length(s.kv_lora + s.rope)
    w.add_value_length(s.kv_lora)
    w.add_key_length_mla(s.nope + s.rope)
    w.add_value_length_mla(s.value)
    w.add_q_lora_rank(s.q_lora)
    w.add_kv_lora_rank(s.kv_lora)
    w.add_layer_norm_rms_eps(s.eps)
    w.add_leading_dense_block_count(s.dense_layers)
    w.add_vocab_size(s.vocab)
    w.add_expert_feed_forward_length(s.expert_inter)
    w.add_expert_count(s.experts)
    w.add_expert_used_count(s.experts_used)
    w.add_expert_shared_count(1)
    w.add_expert_group_count(s.groups)
    w.add_expert_group_used_count(s.groups_used)
    w.add_expert_weights_scale(s.routed_scale)
    w.add_expert_weights_norm(True)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    w.add_rope_dimension_count(s.rope)
    w.add_rope_freq_base(s.rope_base)


def add_tokenizer(w: gguf.GGUFWriter, path: Path) -> None:
    saved = json.loads(path.read_text())
    vocab = sorted(saved["model"]["vocab"], key=saved["model"]["vocab"].__getitem__)
    special = {t["content"] for t in saved["added_tokens"]}
    # the think tags are text that a client may want to see, as in DeepSeek's own files
    kinds = [
        gguf.TokenType.USER_DEFINED
        if t in (THINK, END_THINK)
        else gguf.TokenType.CONTROL
        if t in special
        else gguf.TokenType.NORMAL
        for t in vocab
    ]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("deepseek-v3")
    w.add_token_list(vocab)
    w.add_token_types(kinds)
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in saved["model"]["merges"]])
    w.add_bos_token_id(vocab.index(BOS))
    w.add_eos_token_id(vocab.index(EOS))
    w.add_pad_token_id(vocab.index(PAD))
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_chat_template(TEMPLATE.read_text())


def write(work: Path, out: Path, quant: str) -> None:
    model = checkpoint(work / "checkpoint.pt")
    w = gguf.GGUFWriter(out, "deepseek2")
    w.add_type(gguf.GGUFType.MODEL)
    w.add_name("hetero demo")
    w.add_license("apache-2.0")
    w.add_file_type(FILE_TYPE[quant])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(w, model.s)
    add_tokenizer(w, work / "tokenizer.json")
    quantize = Quantizer()
    for name, array in tensors(model):
        kind = pick_type(name, array, quant)
        w.add_tensor(name, quantize(array, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="default: demo.gguf in the work directory")
    parser.add_argument("--quant", choices=FILE_TYPE, default="mix")
    args = parser.parse_args()
    write(args.work, args.out or args.work / "demo.gguf", args.quant)


if __name__ == "__main__":
    main()
