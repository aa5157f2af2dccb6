"""The router of DeepSeek's mixture of experts (arXiv 2405.04434 for V2, 2412.19437 for V3). T tokens, E experts.

The router picks what the model says: no capacity limit, no dropped expert. Equal scores go to the lower index.
"""

from typing import Literal

import numpy as np
from numba import carray

from .jit import entry, job, kernel
from .matrix import address
from .memory import f32_at, i32_at, i64_at, u8_at
from .pool import Pool
from .rows import bits, share

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
        group_open[g] = 1
    available[:] = 0
    for _ in range(groups_used):
        g = _best(group_scores, group_open)
        group_open[g] = 0
        available[g * size : (g + 1) * size] = 1


# The int64 arguments. SCALE holds the bits of a float64, BIAS 0 means none; SCRATCH_BYTES are of a thread.
(JOB, LOGITS, BIAS, TOKENS, EXPERTS, USED, GROUPS, GROUPS_USED, TOP2, SOFTMAX, NORMALIZE, SCALE, IDS, WEIGHTS, SCRATCH,
 SCRATCH_BYTES) = range(16)  # fmt: skip


@kernel
def _route_token(a, t, scratch):
    experts, used, groups = a[EXPERTS], a[USED], a[GROUPS]
    logits = carray(f32_at(a[LOGITS] + 4 * t * experts), (experts,))
    ids, weights = carray(i32_at(a[IDS] + 4 * t * used), (used,)), carray(f32_at(a[WEIGHTS] + 4 * t * used), (used,))
    scores, choice = carray(f32_at(scratch), (experts,)), carray(f32_at(scratch + 4 * experts), (experts,))
    available = carray(u8_at(scratch + 8 * experts), (experts,))
    group_scores = carray(f32_at(scratch + 12 * experts), (groups,))
    group_open = carray(u8_at(scratch + 12 * experts + 4 * groups), (groups,))
    _scores(logits, a[SOFTMAX] != 0, scores)
    for e in range(experts):
        choice[e], available[e] = scores[e], 1
    if a[BIAS] != 0:
        bias = carray(f32_at(a[BIAS]), (experts,))
        for e in range(experts):
            choice[e] += bias[e]
    if a[GROUPS_USED] < groups:
        _keep_groups(choice, available, group_scores, group_open, a[GROUPS_USED], a[TOP2] != 0)
    total = np.float32(0.0)
    for i in range(used):
        e = _best(choice, available)
        available[e] = 0
        ids[i], weights[i] = e, scores[e]
        total += scores[e]
    scale = np.float32(np.int64(a[SCALE]).view(np.float64))
    factor = scale / (total + np.float32(1e-20)) if a[NORMALIZE] != 0 else scale
    for i in range(used):
        weights[i] *= factor


@job
def _route_job(arguments, thread, threads):
    a = carray(i64_at(arguments), (SCRATCH_BYTES + 1,))
    for t in range(a[TOKENS] * thread // threads, a[TOKENS] * (thread + 1) // threads):
        _route_token(a, t, a[SCRATCH] + thread * a[SCRATCH_BYTES])


@entry
def _route(control, arguments):
    a = carray(i64_at(arguments), (SCRATCH_BYTES + 1,))
    share(control, a[JOB], arguments, a[TOKENS] * a[EXPERTS] * a[USED])


def route(
    pool: Pool,
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
    if logits.ndim != 2 or logits.dtype != np.float32 or not logits.flags.c_contiguous:
        raise ValueError(f"route: logits must be contiguous float32 [T, E], got {logits.dtype} {logits.shape}")
    if bias is not None and (bias.shape != (experts,) or bias.dtype != np.float32 or not bias.flags.c_contiguous):
        raise ValueError(f"route: bias must be contiguous float32 [{experts}], got {bias.dtype} {bias.shape}")
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
    rule = [groups, groups_used, group_score == "top2", gating == "softmax", normalize, bits(scale)]
    shape = [*logits.shape, used]
    size = 12 * experts + 8 * groups + 64
    memory = [address(ids), address(weights), pool.scratch(size * pool.threads), size]
    arrays = [address(logits), 0 if bias is None else address(bias)]
    call = [_route_job.address, *arrays, *shape, *rule, *memory]
    pool.call(_route.address, np.array(call, np.int64), logits, bias, ids, weights)
    return ids, weights
