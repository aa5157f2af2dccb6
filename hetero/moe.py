"""Feed-forward layers: the dense ones, and the mixture of experts (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""

from functools import partial
from typing import Any

import numpy as np

from hetero.config import ModelConfig
from hetero.linear import Linear
from hetero.side import Array, Side


class DenseFFN:
    def __init__(self, weights: Any, side: Side):
        self.weights = weights
        self._ffn = side.ffn

    def __call__(self, x: Array) -> Array:
        """[T, hidden] -> [T, hidden]"""
        return self._ffn(self.weights, x)


class Router:
    """Picks experts exactly as the model says: score, bias, groups, top-k, normalise, scale."""

    def __init__(self, config: ModelConfig, ffn_gate_inp: Linear, exp_probs_b: Array | None):
        self.ffn_gate_inp, self.exp_probs_b = ffn_gate_inp, exp_probs_b
        self.choose = partial(
            ffn_gate_inp.side.route,
            used=config.experts_used,
            groups=config.expert_groups,
            groups_used=config.expert_groups_used,
            group_score=config.group_score,
            gating=config.gating,
            normalize=config.expert_weights_norm,
            scale=config.expert_weights_scale,
        )

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """[T, hidden] -> expert ids int32 [T, k], their weights float32 [T, k]"""
        return self.choose(self.ffn_gate_inp(x), self.exp_probs_b)


class MoE:
    """All experts where the router is. `shared`: the weights of the shared one, or None."""

    def __init__(self, router: Router, routed: Any, shared: Any, side: Side):
        self.router, self.routed, self.shared = router, routed, shared
        self.chosen: Array = np.empty((0, 0), np.int32)  # expert ids of the last call [T, k]
        self._experts, self._host = side.experts, side.host

    def __call__(self, x: Array) -> Array:
        """[T, hidden] -> [T, hidden]"""
        self.chosen, weights = self.router(x)
        return self._experts(self.routed, x, self.chosen, weights, self.shared)

    def choice(self) -> np.ndarray:
        """`chosen`, as numpy's."""
        return self._host(self.chosen)
