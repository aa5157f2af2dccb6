"""The DeepSeek-V3 architecture in plain torch, small enough to train on a CPU. Attributes carry the GGUF names.

B sequences, T tokens each, D model width, H heads, N non-rope and R rope dims of a head, V value dims, C latent width,
E experts of which K are used, in G groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    vocab: int = 4096
    width: int = 256
    layers: int = 4  # without the multi-token-prediction layer
    dense_layers: int = 1
    dense_inter: int = 768
    heads: int = 4
    nope: int = 64
    rope: int = 64
    value: int = 64
    q_lora: int = 256
    kv_lora: int = 256
    experts: int = 16
    experts_used: int = 4
    groups: int = 4
    groups_used: int = 2
    expert_inter: int = 256
    routed_scale: float = 2.5
    rope_base: float = 10000.0
    context: int = 1024
    eps: float = 1e-6


PRESETS = {"cpu": Shape(), "gpu": Shape(layers=6)}


def matrix(*shape: int, std: float | None = None) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * (0.5 / math.sqrt(shape[-1]) if std is None else std))


def ones(width: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(width))


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rope_table(s: Shape, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    frequency = s.rope_base ** (-torch.arange(0, s.rope, 2, device=device).float() / s.rope)
    angle = torch.outer(torch.arange(length, device=device).float(), frequency)  # T, R/2
    return angle.cos()[None, :, None], angle.sin()[None, :, None]  # 1, T, 1, R/2


def rope(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Interleaved pairs (2i, 2i+1), the order of DeepSeek's weights and of GGUF."""
    cos, sin = table
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head latent attention, in the expanded form: keys and values are made from the latent."""

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.attn_q_a = matrix(s.q_lora, s.width)
        self.attn_q_a_norm = ones(s.q_lora)
        self.attn_q_b = matrix(s.heads * (s.nope + s.rope), s.q_lora)
        self.attn_kv_a_mqa = matrix(s.kv_lora + s.rope, s.width)
        self.attn_kv_a_norm = ones(s.kv_lora)
        self.attn_kv_b = matrix(s.heads * (s.nope + s.value), s.kv_lora)
        self.attn_output = matrix(s.width, s.heads * s.value, std=0.2 / math.sqrt(s.heads * s.value))

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        s, (B, T, _) = self.s, x.shape
        q = F.linear(norm(F.linear(x, self.attn_q_a), self.attn_q_a_norm, s.eps), self.attn_q_b)
        q_nope, q_rope = q.view(B, T, s.heads, -1).split([s.nope, s.rope], -1)
        latent, k_rope = F.linear(x, self.attn_kv_a_mqa).split([s.kv_lora, s.rope], -1)
        kv = F.linear(norm(latent, self.attn_kv_a_norm, s.eps), self.attn_kv_b)
        k_nope, v = kv.view(B, T, s.heads, -1).split([s.nope, s.value], -1)
        k_rope = rope(k_rope.unsqueeze(2), table).expand(-1, -1, s.heads, -1)  # one rope key for all heads
        q = torch.cat([q_nope, rope(q_rope, table)], -1).transpose(1, 2)  # B, H, T, N+R
        k = torch.cat([k_nope, k_rope], -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)  # scale 1/sqrt(N+R)
        return F.linear(y.transpose(1, 2).reshape(B, T, -1), self.attn_output)


class Dense(nn.Module):
    def __init__(self, s: Shape, inter: int, suffix: str = ""):
        super().__init__()
        self.names = [f"ffn_{part}{suffix}" for part in ("gate", "up", "down")]
        self.register_parameter(self.names[0], matrix(inter, s.width))
        self.register_parameter(self.names[1], matrix(inter, s.width))
        self.register_parameter(self.names[2], matrix(s.width, inter, std=0.2 / math.sqrt(inter)))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (getattr(self, n) for n in self.names)
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


class Experts(nn.Module):
    """Sigmoid router with a selection bias and groups, routed experts, one shared expert."""

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.ffn_gate_inp = matrix(s.experts, s.width, std=0.02)
        self.register_buffer("exp_probs_b", torch.zeros(s.experts))
        self.register_buffer("load", torch.zeros(s.experts), persistent=False)
        self.ffn_gate_exps = matrix(s.experts, s.expert_inter, s.width)
        self.ffn_up_exps = matrix(s.experts, s.expert_inter, s.width)
        self.ffn_down_exps = matrix(s.experts, s.width, s.expert_inter, std=0.2 / math.sqrt(s.expert_inter))
        self.shared = Dense(s, s.expert_inter, "_shexp")

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """chosen experts [T, K] and their weights [T, K]: the bias takes part in the choice only"""
        s = self.s
        score = torch.sigmoid(F.linear(x.float(), self.ffn_gate_inp.float()))  # T, E
        with torch.no_grad():
            biased = score + self.exp_probs_b
            per_group = biased.view(-1, s.groups, s.experts // s.groups)
            best = per_group.topk(2, -1)[0].sum(-1).topk(s.groups_used, -1)[1]  # T, groups used
            keep = torch.zeros(len(x), s.groups, dtype=torch.bool, device=x.device).scatter_(1, best, True)
            chosen = per_group.masked_fill(~keep.unsqueeze(-1), -1e9).flatten(1).topk(s.experts_used, -1)[1]
        weight = score.gather(1, chosen)
        return chosen, weight / (weight.sum(-1, keepdim=True) + 1e-20) * s.routed_scale

    def forward(self, x: Tensor) -> Tensor:
        s, shape = self.s, x.shape
        x = x.reshape(-1, s.width)
        chosen, weight = self.route(x)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)  # (token, choice) pairs, grouped by expert
        token = order // s.experts_used
        count = torch.bincount(flat, minlength=s.experts)
        if self.training:
            self.load += count
        out = self.grouped(x.index_select(0, token), count) * weight.flatten().index_select(0, order).unsqueeze(1)
        y = torch.zeros(x.shape, dtype=torch.float32, device=x.device).index_add(0, token, out)
        return (y.to(x.dtype) + self.shared(x)).view(shape)

    def grouped(self, x: Tensor, count: Tensor) -> Tensor:
        """Each expert on its own rows. The CUDA branch has not been run."""
        if x.is_cuda:
            ends, gate, up, down = (
                count.cumsum(0).to(torch.int32),
                *(w.bfloat16().transpose(1, 2) for w in (self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps)),
            )
            x = x.bfloat16()
            hidden = F.silu(F.grouped_mm(x, gate, offs=ends)) * F.grouped_mm(x, up, offs=ends)
            return F.grouped_mm(hidden, down, offs=ends).float()
        experts = zip(x.split(count.tolist()), self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps, strict=True)
        return torch.cat([F.linear(F.silu(F.linear(rows, g)) * F.linear(rows, u), d) for rows, g, u, d in experts])


class Block(nn.Module):
    def __init__(self, s: Shape, dense: bool):
        super().__init__()
        self.eps = s.eps
        self.attn_norm, self.ffn_norm = ones(s.width), ones(s.width)
        self.attn = Attention(s)
        self.ffn = Dense(s, s.dense_inter) if dense else Experts(s)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn(norm(x, self.attn_norm, self.eps), table)
        return x + self.ffn(norm(x, self.ffn_norm, self.eps))


class NextN(nn.Module):
    """The multi-token-prediction layer: (final hidden of token t, embedding of token t + 1) -> token t + 2.

    It reads the hidden state after the output norm, as vLLM and SGLang do for DeepSeek-V3.
    """

    def __init__(self, s: Shape):
        super().__init__()
        self.eps = s.eps
        self.enorm, self.hnorm, self.shared_head_norm = ones(s.width), ones(s.width), ones(s.width)
        self.eh_proj = matrix(s.width, 2 * s.width)
        self.block = Block(s, dense=False)

    def forward(self, hidden: Tensor, embedding: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        x = torch.cat([norm(embedding, self.enorm, self.eps), norm(hidden, self.hnorm, self.eps)], -1)
        return norm(self.block(F.linear(x, self.eh_proj), table), self.shared_head_norm, self.eps)


class Model(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.token_embd = matrix(s.vocab, s.width, std=0.02)
        self.output = matrix(s.vocab, s.width, std=0.005)
        self.output_norm = ones(s.width)
        self.blk = nn.ModuleList(Block(s, dense=i < s.dense_layers) for i in range(s.layers))
        self.nextn = NextN(s)

    def hidden(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> what the head reads [B, T, D]"""
        table = rope_table(self.s, ids.shape[1], ids.device)
        x = F.embedding(ids, self.token_embd)
        for block in self.blk:
            x = block(x, table)
        return norm(x, self.output_norm, self.s.eps)

    def next_hidden(self, hidden: Tensor, following: Tensor) -> Tensor:
        """hidden [B, T, D] and the ids that follow [B, T] -> what the head reads to draft the token after those"""
        table = rope_table(self.s, following.shape[1], following.device)
        return self.nextn(hidden, F.embedding(following, self.token_embd), table)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.hidden(ids), self.output)
