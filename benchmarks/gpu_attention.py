"""Attention of DeepSeek-V3's 128 heads over the latent cache: absorbed, as decoding does it, and expanded, of prompts.

The nearer of two limits counts: the bytes of the cache that are read once, and the multiplications at the bf16 rate.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_cases import Case
from benchmarks.gpu_checks import LATENT, NOPE, ROPE, VALUE
from benchmarks.gpu_setup import Setup, at_least, figure, nearer_bound

HEADS, DEPTHS, TOKENS = 128, (0, 4096, 32768), (1, 2, 4)
TARGET_DEPTH, TARGET = 32768, 0.40
PROMPTS = ((512, 0), (4096, 0), (512, 4096), (2048, 30720))  # tokens, and those before them


def cases(setup: Setup) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for kv in ("f16", "q8_0"):
        for depth in DEPTHS:
            found[f"absorbed {kv} at {depth}"] = partial(absorbed, setup, kv, depth)
    for tokens, before in PROMPTS:
        found[f"expanded {tokens} after {before}"] = partial(expanded, setup, tokens, before)
    return found


def random_layer(setup: Setup, kv: str, pages: int) -> Any:
    layer = setup.verbs.cache_layer(setup.device, pages, kv, LATENT + ROPE)
    if layer.q8:
        layer.values.random_(-127, 128)
        layer.scales.fill_(1 / 127)
    else:
        layer.values.normal_()
    return layer


def absorbed(setup: Setup, kv: str, depth: int) -> Iterator[dict[str, Any]]:
    """The grid is that of a context of 32K, whatever the depth, as a captured step has it."""
    heads, depth_here = setup.size(HEADS, 2), setup.size(depth, min(depth, 130))
    pages = setup.size(TARGET_DEPTH + 64, 192) // 64
    first = random_layer(setup, kv, pages)
    read = (depth_here + 1) * first.nbytes // (64 * pages)
    layers = [first, *(random_layer(setup, kv, pages) for _ in range(min(16, setup.rotated(read) - 1)))]
    table = torch.randperm(pages, device=setup.place).int()[None].contiguous()
    for tokens in TOKENS:
        q, rotated = setup.normal(tokens, heads, LATENT), setup.normal(tokens, heads, ROPE)
        sequence = torch.zeros(tokens, dtype=torch.int32, device=setup.place)
        positions = depth_here + torch.arange(tokens, dtype=torch.int32, device=setup.place)
        call = partial(setup.verbs.mla_absorbed, setup.device, q, rotated)
        calls = [partial(call, layer, table, sequence, positions, 0.1) for layer in layers]
        seconds = setup.timer.medians({"": calls})[""]
        pairs = sum(depth_here + 1 + t for t in range(tokens))
        nbytes, flops = read + 4 * q.numel() * 2, heads * pairs * (4 * LATENT + 2 * ROPE)
        bound, share = nearer_bound(setup, seconds, nbytes, flops)
        aimed = depth == TARGET_DEPTH and tokens == 1 and kv == "f16"
        yield figure(
            f"T={tokens}",
            seconds,
            "s",
            bound_by=bound,
            share=share,
            target=f">= {TARGET:.0%} of the nearer limit" if aimed else "",
            passed=at_least(share, TARGET) if aimed else None,
        )


def expanded(setup: Setup, tokens: int, before: int) -> Iterator[dict[str, Any]]:
    heads, tokens, before = setup.size(HEADS, 2), setup.size(tokens, 40), setup.size(before, min(before, 64))
    length = tokens + before
    pages = -(-length // 64)
    layer, row = random_layer(setup, "f16", pages), torch.arange(pages, dtype=torch.int32, device=setup.place)
    k_b, v_b = setup.matrix("Q8_0", LATENT, NOPE, heads), setup.matrix("Q8_0", VALUE, LATENT, heads)
    q = setup.normal(tokens, heads, NOPE + ROPE)
    positions = torch.arange(before, length, dtype=torch.int32, device=setup.place)
    call = partial(setup.verbs.mla_expanded, setup.device, q, k_b, v_b, layer, row, positions, 0.1, k_transposed=True)
    ways = {way: [partial(call, flash=way == "flash")] for way in ("flash", "sdpa")}
    pairs = tokens * before + tokens * (tokens + 1) // 2
    flops = heads * 2 * (LATENT * (NOPE + VALUE) * length + (NOPE + ROPE + VALUE) * pairs)
    for way, seconds in setup.timer.medians(ways, eager=True).items():
        bound, share = nearer_bound(setup, seconds, layer.nbytes, flops)
        yield figure(way, seconds, "s", bound_by=bound, share=share, flops_per_second=flops / seconds)
