"""The router of DeepSeek's mixture of experts (arXiv 2405.04434 for V2, 2412.19437 for V3). T tokens, E experts.

It picks exactly as the CPU's: no capacity limit, no dropped expert, equal scores go to the lower index. Experts are
compared by rank, an int32 in the order of the numbers: a warp finds the highest of 32 integers in one instruction.
Scores may differ from the CPU's by 1e-6 of them (the GPU's exponential is an approximation), so that experts which
differ by less may change places; equal logits have equal scores on either side.
"""

from typing import Any, Literal

import torch

from .device import Device
from .jit import constexpr_function, jit, next_power_of_2, tl

GROUP_SCORES = ("top2", "max")
GATINGS = ("sigmoid", "softmax")

CLOSED = tl.constexpr(-0x80000000)  # the rank of what cannot be chosen: below that of every number
NAN = tl.constexpr(-0x7FFFFFFF)  # below that of -infinity
NOBODY = tl.constexpr(0x7FFFFFFF)  # above every index, and above the rank of +infinity

_padded = constexpr_function(next_power_of_2)


@jit
def _rank(x):
    """int32, in the order of float32 numbers; both zeros have the same."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), NAN)


@jit
def _best(ranks, index):
    """The index of the highest rank, the lowest of equals.

    The CPU walks up from the first open one and moves where a comparison says "greater", which none with a NaN does: a
    NaN is chosen where it is the first that is open, and nowhere else.
    """
    first = tl.min(tl.where(ranks != CLOSED, index, NOBODY))
    ranks = tl.where((index == first) & (ranks == NAN), NOBODY, ranks)
    return tl.min(tl.where(ranks == tl.max(ranks), index, NOBODY))


@jit
def _kept_groups(choice, index, groups, GROUPS_USED: tl.constexpr, TOP2: tl.constexpr):
    """int1 [G]: the best groups by their best expert or two of choice[G, S], -infinity where there is no expert."""
    counted = tl.where(choice == choice, choice, float("-inf"))
    scores = tl.max(counted, 1)
    if TOP2:
        best = tl.min(tl.where(counted == scores[:, None], index, NOBODY), 1)
        scores += tl.max(tl.where(index == best[:, None], float("-inf"), counted), 1)
    g = tl.arange(0, choice.shape[0])
    ranks = tl.where(g < groups, _rank(scores), CLOSED)
    for _ in range(GROUPS_USED):
        ranks = tl.where(g == _best(ranks, g), CLOSED, ranks)
    return ranks == CLOSED


@jit
def _gate(logits, highest, total, SOFTMAX: tl.constexpr):
    """Scores; `highest` and `total` are those of a softmax."""
    if SOFTMAX:
        return tl.div_rn(tl.exp(logits - highest), total)
    else:
        return tl.div_rn(1.0, 1.0 + tl.exp(-logits))


@jit
def _route_kernel(
    logits,  # [T, E]
    bias,  # [E], or None
    ids,  # [T, USED]
    weights,
    scale,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,  # experts of a group
    GROUPS_USED: tl.constexpr,
    USED: tl.constexpr,
    TOP2: tl.constexpr,
    SOFTMAX: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """A token a program, of one warp. Its experts are a tile [groups, experts of a group], each side padded."""
    t = tl.program_id(0).to(tl.int64)
    logits += t * (GROUPS * SIZE)
    group, member = tl.arange(0, _padded(GROUPS))[:, None], tl.arange(0, _padded(SIZE))[None, :]
    index = group * SIZE + member
    there = (group < GROUPS) & (member < SIZE)
    values = tl.load(logits + index, mask=there, other=float("-inf"))
    highest, total = 0.0, 1.0
    if SOFTMAX:
        highest = tl.max(tl.where(values == values, values, float("-inf")))
        total = tl.sum(tl.exp(values - highest))
    choice = _gate(values, highest, total, SOFTMAX)
    if bias is not None:
        choice += tl.load(bias + index, mask=there, other=0.0)
    choice = tl.where(there, choice, float("-inf"))
    if GROUPS_USED < GROUPS:
        there = there & _kept_groups(choice, index, GROUPS, GROUPS_USED, TOP2)[:, None]
    ranks = tl.where(there, _rank(choice), CLOSED)

    slot = tl.arange(0, _padded(USED))
    chosen = tl.zeros_like(slot)
    for i in range(USED):
        best = _best(ranks, index)
        ranks = tl.where(index == best, CLOSED, ranks)
        chosen = tl.where(slot == i, best, chosen)
    taken = slot < USED
    scores = _gate(tl.load(logits + chosen, mask=taken, other=0.0), highest, total, SOFTMAX)
    if NORMALIZE:
        scale = tl.div_rn(scale, tl.sum(tl.where(taken, scores, 0.0)) + 1e-20)
    tl.store(ids + t * USED + slot, chosen, mask=taken)
    tl.store(weights + t * USED + slot, scores * scale, mask=taken)


def _check(logits: torch.Tensor, bias: torch.Tensor | None, used: int, groups: int, groups_used: int) -> None:
    experts = logits.shape[-1]
    if logits.ndim != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"route: logits must be contiguous float32 [T, E], got {logits.dtype} {tuple(logits.shape)}")
    if bias is not None and (bias.shape != (experts,) or bias.dtype != torch.float32 or not bias.is_contiguous()):
        raise ValueError(f"route: bias must be contiguous float32 [{experts}], got {bias.dtype} {tuple(bias.shape)}")
    if groups < 1 or experts % groups or not 1 <= groups_used <= groups:
        raise ValueError(f"route: {groups_used} of {groups} groups of {experts} experts")
    if not 1 <= used <= experts // groups * groups_used:
        raise ValueError(f"route: {used} experts asked of {groups_used} groups of {experts // groups}")


def _check_rule(group_score: str, gating: str) -> None:
    if group_score not in GROUP_SCORES:
        raise ValueError(f"route: group_score {group_score!r} is not one of {GROUP_SCORES}")
    if gating not in GATINGS:
        raise ValueError(f"route: gating {gating!r} is not one of {GATINGS}")


def route(
    device: Device,
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    used: int,
    groups: int,
    groups_used: int,
    group_score: Literal["top2", "max"],
    gating: Literal["sigmoid", "softmax"],
    normalize: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids int32 [T, used], best first, and their weights float32 [T, used], from logits[T, E].

    Groups and experts are chosen by score + bias, the weights are the scores without it.
    """
    _check(logits, bias, used, groups, groups_used)
    _check_rule(group_score, gating)
    tokens, experts = logits.shape
    ids = device.empty((tokens, used), torch.int32)
    weights = device.empty((tokens, used))
    if groups_used == groups:  # no choice among them: one group, one row of the tile
        groups = groups_used = 1
    rule: dict[str, Any] = {
        "GROUPS": groups,
        "SIZE": experts // groups,
        "GROUPS_USED": groups_used,
        "USED": used,
        "TOP2": group_score == "top2" and experts > groups,
        "SOFTMAX": gating == "softmax",
        "NORMALIZE": bool(normalize),
    }
    if tokens:
        device.launch(_route_kernel, (tokens,), logits, bias, ids, weights, float(scale), warps=1, **rule)
    return ids, weights


def _rank_twin(x: torch.Tensor) -> torch.Tensor:
    bits = torch.where(x == 0.0, 0.0, x).view(torch.int32)
    return torch.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), NAN.value)


def _best_twin(ranks: torch.Tensor) -> torch.Tensor:
    """[T, n] -> int64 [T, 1], for each row what `_best` finds. torch's argmax is the first of equals."""
    first = (ranks != CLOSED.value).int().argmax(dim=1, keepdim=True)
    return torch.where(ranks.gather(1, first) == NAN.value, first, ranks.argmax(dim=1, keepdim=True))


def _pick_twin(ranks: torch.Tensor, count: int) -> torch.Tensor:
    """int64 [T, count], best first; closes them in `ranks`."""
    picked = []
    for _ in range(count):
        picked.append(_best_twin(ranks))
        ranks.scatter_(1, picked[-1], CLOSED.value)
    return torch.cat(picked, dim=1)


def _group_scores_twin(choice: torch.Tensor, groups: int, top2: bool) -> torch.Tensor:
    """[T, G]"""
    counted = torch.where(choice == choice, choice, -torch.inf).unflatten(1, (groups, -1))
    best = counted.topk(min(2 if top2 else 1, counted.shape[2]), dim=2).values
    return best.sum(dim=2)


def route_twin(
    device: Device,
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    used: int,
    groups: int,
    groups_used: int,
    group_score: Literal["top2", "max"],
    gating: Literal["sigmoid", "softmax"],
    normalize: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(logits, bias, used, groups, groups_used)
    _check_rule(group_score, gating)
    scores = torch.softmax(logits, dim=1) if gating == "softmax" else 1.0 / (1.0 + torch.exp(-logits))
    choice = scores if bias is None else scores + bias
    ranks = _rank_twin(choice)
    if groups_used < groups:
        group_ranks = _rank_twin(_group_scores_twin(choice, groups, group_score == "top2"))
        _pick_twin(group_ranks, groups_used)
        open = (group_ranks == CLOSED.value).repeat_interleave(logits.shape[1] // groups, dim=1)
        ranks = torch.where(open, ranks, CLOSED.value)
    ids = _pick_twin(ranks, used)
    weights = scores.gather(1, ids)
    if normalize:
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-20)
    return ids.int(), weights * scale
