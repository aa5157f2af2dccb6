"""Feed-forward layers: the dense ones, and the mixture of experts (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""

from functools import partial

import numpy as np

from cpu_kernels import Pool, ffn, route, routed_experts
from cpu_kernels.gated import Gated
from hetero.config import ModelConfig
from hetero.linear import Linear


class DenseFFN:
    def __init__(self, weights: Gated, pool: Pool):
        self.weights, self.pool = weights, pool

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[T, hidden] -> [T, hidden]"""
        return ffn(self.pool, self.weights, x)


class Router:
    """Picks experts exactly as the model says; DESIGN of the gate: score, bias, groups, top-k, normalise, scale."""

    def __init__(self, config: ModelConfig, ffn_gate_inp: Linear, exp_probs_b: np.ndarray | None):
        self.ffn_gate_inp, self.exp_probs_b = ffn_gate_inp, exp_probs_b
        self.choose = partial(
            route,
            ffn_gate_inp.pool,
            used=config.experts_used,
            groups=config.expert_groups,
            groups_used=config.expert_groups_used,
            group_score=config.group_score,
            gating=config.gating,
            normalize=config.expert_weights_norm,
            scale=config.expert_weights_scale,
        )

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[T, hidden] -> expert ids int32 [T, k], their weights float32 [T, k]"""
        return self.choose(self.ffn_gate_inp(x), self.exp_probs_b)


class MoE:
    def __init__(self, router: Router, routed: Gated, shared: DenseFFN | None, pool: Pool):
        self.router, self.routed, self.shared, self.pool = router, routed, shared, pool
        self.chosen = np.empty((0, 0), np.int32)  # expert ids of the last call [T, k], for whoever counts them

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[T, hidden] -> [T, hidden]"""
        self.chosen, weights = self.router(x)
        shared = self.shared.weights if self.shared is not None else None
        return routed_experts(self.pool, self.routed, x, self.chosen, weights, shared)
