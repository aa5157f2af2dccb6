"""From a file's tensors to a bound model. The only code that moves weight bytes."""

from collections.abc import Container
from typing import Any, Protocol

import numpy as np

from cpu_kernels import Matrix, Pool
from cpu_kernels.gated import Gated, Part, cuts
from hetero.attention import MLA, KvUp, MLAWeights, QueryUp
from hetero.config import ModelConfig
from hetero.gguf import GGUFFile
from hetero.linear import Linear
from hetero.model import Block, Ends, Model
from hetero.moe import DenseFFN, MoE, Router
from hetero.nodes import part_name
from hetero.side import Array, CpuSide


class Weights:
    """The tensors of a model, bound to CPU kernels where they lie."""

    def __init__(self, file: GGUFFile, side: CpuSide):
        self.file, self.side, self.pool = file, side, side.pool

    def vector(self, name: str) -> np.ndarray:
        """float32 [n]"""
        return self.file.tensors[name].data.view(np.float32).reshape(-1)

    def matrix(self, name: str) -> Matrix:
        tensor = self.file.tensors[name]
        if tensor.layout == "x16":
            *stack, rows, columns = tensor.shape
            return Matrix.x16(tensor.data, tensor.type, rows, columns, flat=not stack)
        return Matrix(tensor.data, tensor.type, tensor.shape[-1])

    def linear(self, *names: str) -> Linear:
        """One product for matrices with the same input, side by side."""
        return Linear(self.side, *(self.matrix(name) for name in names))

    def gated(self, layer: int, suffix: str, experts: int, hidden: int) -> Gated:
        """A layer's feed-forward networks of so many rows, in a part for each NUMA node."""
        tensors, nodes = self.file.tensors, range(len(self.pool.nodes))
        names = [f"blk.{layer}.ffn_{part}{suffix}.weight" for part in ("gate", "up", "down")]
        if names[0] in tensors:
            gate, up, down = map(self.matrix, names)
            return Gated.split(self.pool, gate, up, down, layer)
        down_type = next(tensors[name].type for node in nodes if (name := part_name(names[2], node)) in tensors)
        parts = list[Part | None]()
        for node, cut in enumerate(cuts(self.pool, experts, hidden, down_type, layer)):
            if cut is None:
                parts.append(None)
                continue
            gate, up, down = (self.matrix(part_name(name, node)) for name in names)
            parts.append(Part(gate, up, down, cut.first, cut.step))
        return Gated(parts)

    def kv_up(self, prefix: str, config: ModelConfig) -> KvUp:
        if config.kv_b_split:
            return KvUp(self.matrix(prefix + "attn_k_b.weight"), self.matrix(prefix + "attn_v_b.weight"), True)
        tensor = self.file.tensors[prefix + "attn_kv_b.weight"]  # rows: for each head N of keys, then V of values
        keys, values, columns = config.nope_dim, config.value_dim, tensor.shape[-1]
        if tensor.layout == "x16":
            heads = tensor.data.reshape(config.heads, (keys + values) // 16, -1)
            k_b = Matrix.x16(heads[:, : keys // 16], tensor.type, keys, columns)
            return KvUp(k_b, Matrix.x16(heads[:, keys // 16 :], tensor.type, values, columns), False)
        heads = tensor.data.reshape(config.heads, keys + values, -1)
        return KvUp(Matrix(heads[:, :keys], tensor.type, columns), Matrix(heads[:, keys:], tensor.type, columns), False)


class Source(Protocol):
    """Where tensors become what the verbs of a side take."""

    side: Any

    def vector(self, name: str) -> Array: ...

    def linear(self, *names: str) -> Linear: ...

    def kv_up(self, prefix: str, config: ModelConfig) -> KvUp: ...


def mla_weights(weights: Source, config: ModelConfig, prefix: str) -> MLAWeights:
    first, query_up = "attn_q.weight", None
    if config.q_lora_rank:
        first = "attn_q_a.weight"
        query_up = QueryUp(weights.vector(prefix + "attn_q_a_norm.weight"), weights.linear(prefix + "attn_q_b.weight"))
    return MLAWeights(
        attn_a=weights.linear(prefix + first, prefix + "attn_kv_a_mqa.weight"),
        query_up=query_up,
        attn_kv_a_norm=weights.vector(prefix + "attn_kv_a_norm.weight"),
        attn_kv_b=weights.kv_up(prefix, config),
        attn_output=weights.linear(prefix + "attn_output.weight"),
    )


def feed_forward(weights: Weights, config: ModelConfig, layer: int) -> DenseFFN | MoE:
    if layer < config.dense_layers:
        return DenseFFN(weights.gated(layer, "", 1, config.intermediate_size), weights.side)
    width = config.expert_intermediate_size
    routed, shared = weights.gated(layer, "_exps", config.experts, width), None
    if config.shared_experts:
        shared = weights.gated(layer, "_shexp", 1, config.shared_experts * width)
    return MoE(router(weights, config, layer), routed, shared, weights.side)


def router(weights: Source, config: ModelConfig, layer: int) -> Router:
    prefix = f"blk.{layer}."
    bias = weights.vector(prefix + "exp_probs_b.bias") if config.expert_bias else None
    return Router(config, weights.linear(prefix + "ffn_gate_inp.weight"), bias)


def block(weights: Source, config: ModelConfig, layer: int, feed_forward: DenseFFN | MoE) -> Block:
    prefix = f"blk.{layer}."
    return Block(
        attn_norm=weights.vector(prefix + "attn_norm.weight"),
        attention=MLA(config, mla_weights(weights, config, prefix), weights.side),
        ffn_norm=weights.vector(prefix + "ffn_norm.weight"),
        feed_forward=feed_forward,
    )


def head(weights: Source, tensors: Container[str]) -> tuple[Array, Linear]:
    """The last norm and the head."""
    # tied models have no output.weight in the file; loading makes a rearranged one of the embedding
    name = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    return weights.vector("output_norm.weight"), weights.linear(name)


def place_weights(file: GGUFFile, config: ModelConfig, pool: Pool) -> Model:
    """Binds every tensor of the main model; trailing multi-token-prediction layers stay untouched in the file."""
    weights = Weights(file, CpuSide(pool))
    blocks = [block(weights, config, i, feed_forward(weights, config, i)) for i in range(config.layers)]
    return Model(config, blocks, Ends(weights.matrix("token_embd.weight"), *head(weights, file.tensors)), weights.side)
