"""The router of DeepSeek's mixture of experts (arXiv 2405.04434 for V2, 2412.19437 for V3). T tokens, E experts.

The router picks what the model says: no capacity limit, no dropped expert. Equal scores go to the lower index.
"""

from typing import Literal

import numpy as np

from .jit import kernel

GROUP_SCORES = ("top2", "max")
GATINGS = ("sigmoid", "softmax")


@kernel
def _scores(logits, softmax, scores):
    if not softmax:
        for e in range(logits.size):
            scores[e] = np.float32(1.0) / (np.float32(1.0) + np.exp(-logits[e]))
        return
    highest = logits[0]
    for e in range(logits.size):
        highest = max(highest, logits[e])
    total = np.float64(0.0)
    for e in range(logits.size):
        scores[e] = np.exp(logits[e] - highest)
        total += scores[e]
    for e in range(logits.size):
        scores[e] = np.float32(scores[e] / total)


@kernel
def _best(values, available):
    """Index of the largest available value, the lowest of equals; an available one even if all are NaN."""
    best = -1
    for i in range(values.size):
        if available[i] and (best < 0 or values[i] > values[best]):
            best = i
    return best


@kernel
def _keep_groups(choice, available, group_scores, group_open, groups_used, top2):
    """Make every expert outside the `groups_used` best groups unavailable."""
    size = choice.size // group_scores.size
    for g in range(group_scores.size):
        first, second = -np.inf, -np.inf
        for e in range(g * size, (g + 1) * size):
            if choice[e] > first:
                first, second = choice[e], first
            elif choice[e] > second:
                second = choice[e]
        group_scores[g] = first + second if top2 and size > 1 else first
        group_open[g] = True
    available[:] = False
    for _ in range(groups_used):
        g = _best(group_scores, group_open)
        group_open[g] = False
        available[g * size : (g + 1) * size] = True


@kernel
def _route(logits, bias, groups, groups_used, top2, softmax, normalize, scale, ids, weights):
    experts, used = logits.shape[1], ids.shape[1]
    scores, choice = np.empty(experts, np.float32), np.empty(experts, np.float32)
    available = np.empty(experts, np.bool_)
    group_scores, group_open = np.empty(groups, np.float32), np.empty(groups, np.bool_)
    for t in range(logits.shape[0]):
        _scores(logits[t], softmax, scores)
        for e in range(experts):
            choice[e] = scores[e] + bias[e]
        available[:] = True
        if groups_used < groups:
            _keep_groups(choice, available, group_scores, group_open, groups_used, top2)
        total = np.float32(0.0)
        for i in range(used):
            e = _best(choice, available)
            available[e] = False
            ids[t, i] = e
            weights[t, i] = scores[e]
            total += scores[e]
        factor = scale / (total + np.float32(1e-20)) if normalize else scale
        for i in range(used):
            weights[t, i] *= factor


def route(
    logits: np.ndarray,
    bias: np.ndarray | None,
    *,
    used: int,
    groups: int,
    groups_used: int,
    group_score: Literal["top2", "max"],
    gating: Literal["sigmoid", "softmax"],
    normalize: bool,
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Expert ids int32 [T, used], best first, and their weights float32 [T, used], from logits[T, E].

    Groups and experts are chosen by score + bias, the weights are the scores without it. An expert outside the chosen
    groups is out (-inf, as in DeepSeek's own code, llama.cpp and transformers 5): the 0.0 that older transformers
    wrote instead beats a kept expert whose score + bias is negative.
    """
    experts = logits.shape[-1]
    if logits.ndim != 2 or logits.dtype != np.float32:
        raise ValueError(f"route: logits must be float32 [T, E], got {logits.dtype} {logits.shape}")
    if bias is None:
        bias = np.zeros(experts, np.float32)
    if bias.shape != (experts,) or bias.dtype != np.float32:
        raise ValueError(f"route: bias must be float32 [{experts}], got {bias.dtype} {bias.shape}")
    if group_score not in GROUP_SCORES:
        raise ValueError(f"route: group_score {group_score!r} is not one of {GROUP_SCORES}")
    if gating not in GATINGS:
        raise ValueError(f"route: gating {gating!r} is not one of {GATINGS}")
    if groups < 1 or experts % groups or not 1 <= groups_used <= groups:
        raise ValueError(f"route: {groups_used} of {groups} groups of {experts} experts")
    if not 1 <= used <= experts // groups * groups_used:
        raise ValueError(f"route: {used} experts asked of {groups_used} groups of {experts // groups}")
    ids = np.empty((logits.shape[0], used), np.int32)
    weights = np.empty((logits.shape[0], used), np.float32)
    top2, softmax = group_score == "top2", gating == "softmax"
    _route(logits, bias, groups, groups_used, top2, softmax, normalize, np.float32(scale), ids, weights)
    return ids, weights
