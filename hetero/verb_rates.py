"""How fast attention and the small verbs are on this machine: the project's kernels are called, and timed."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np

from cpu_kernels import (
    Matrix,
    Pool,
    cache_layer,
    dequantize,
    embed,
    mla_absorbed,
    mla_expanded,
    rms_norm,
    rope,
    route,
    write_cache,
)
from cpu_kernels.attention_absorbed import ROW_BLOCK
from hetero.cache import PAGE
from hetero.random_weights import random_rows
from hetero.stopwatch import Stopwatch
from placement.machine import AttentionRate, VerbRate

KV = Literal["f32", "f16", "q8_0"]
SmallVerb = Literal["embed", "rms_norm", "rope", "write_cache", "route"]
# Of latent attention, in every DeepSeek; the fewest heads of one, and the most
LATENT, ROPE, NOPE, VALUE, FEW_HEADS, MANY_HEADS = 512, 64, 128, 128, 16, 128
DEPTH, ROTATED_BYTES = 2048, 64 << 20  # tokens; of caches that are read in turn
EXPANDED_TOKENS = 384
TOKENS, HIDDEN, EXPERTS, USED = 256, 2048, 64, 8  # of small verbs
REPEATED = 16
# What a pass takes beside its replayed program, in calls from Python: 100 us where a call takes 15 (one Zen 4)
CALLS_OF_A_PASS = 7


class AttentionRates:
    """`rate(kv)` measures."""

    def __init__(self, pool: Pool, stopwatch: Stopwatch, rotated_bytes: int = ROTATED_BYTES, depth: int = DEPTH):
        self.pool, self.stopwatch, self.rotated_bytes, self.depth = pool, stopwatch, rotated_bytes, depth
        self._rng = np.random.default_rng(0)

    def rate(self, kv: KV) -> AttentionRate:
        """Absorbed: from one token with few heads and with many, alone and after many others, what a call, a row, a
        cached value and a multiply-add cost, each."""
        layers, last, blocks = self.layers(kv), self.depth - 1, MANY_HEADS // ROW_BLOCK
        alone, deep = (
            {heads: self.absorbed(layers, 1, heads, depth) for heads in (FEW_HEADS, MANY_HEADS)} for depth in (0, last)
        )
        # Of a cached token. Nearly all that a deep one takes is that, unless something else stopped the single one
        few, many = (max(deep[heads] - alone[heads], deep[heads] / 2) / last for heads in (FEW_HEADS, MANY_HEADS))
        row = max(0.0, alone[MANY_HEADS] - many - alone[FEW_HEADS] + few) / (MANY_HEADS - FEW_HEADS)
        call = max(0.0, alone[FEW_HEADS] - few - FEW_HEADS * row)
        head = max((many - blocks * few) / (MANY_HEADS - blocks * FEW_HEADS), many / MANY_HEADS / 2)
        value = max(0.0, few - FEW_HEADS * head) / (LATENT + ROPE)
        flops = (4 * LATENT + 2 * ROPE) / head
        expanded = self._expanded_flops() / self.expanded(layers[0], EXPANDED_TOKENS, FEW_HEADS)
        return AttentionRate(kv, call, flops, flops, expanded, row, value)

    def layers(self, kv: KV) -> list[np.ndarray]:
        """Caches of `depth` random tokens, enough of them to be read from memory."""
        first = cache_layer(self.depth // PAGE, kv, LATENT + ROPE)
        latent, key = self._normal(self.depth, LATENT), self._normal(self.depth, ROPE)
        write_cache(self.pool, first, latent, key, np.arange(self.depth))
        return [first, *(first.copy() for _ in range(self.rotated_bytes // first.nbytes))]

    def absorbed(self, layers: list[np.ndarray], tokens: int, heads: int, depth: int) -> float:
        """Seconds of one layer's attention, after `depth` cached tokens."""
        q, rotated = self._normal(tokens, heads, LATENT), self._normal(tokens, heads, ROPE)
        table = np.arange(self.depth // PAGE, dtype=np.int32)[None]
        sequence, positions = np.zeros(tokens, np.int32), np.arange(depth, depth + tokens, dtype=np.int32)

        def call(layer: np.ndarray) -> object:
            return mla_absorbed(self.pool, q, rotated, layer, table, sequence, positions, 0.1)

        return self.stopwatch.time_recorded(self.pool, [partial(call, layer) for layer in layers])

    def expanded(self, layer: np.ndarray, tokens: int, heads: int) -> float:
        q = self._normal(tokens, heads, NOPE + ROPE)
        k_up, v_up = self._normal(heads, LATENT, NOPE), self._normal(heads, VALUE, LATENT)
        row, positions = np.arange(self.depth // PAGE, dtype=np.int32), np.arange(tokens, dtype=np.int32)
        return self.stopwatch.time(lambda: mla_expanded(self.pool, q, k_up, v_up, layer, row, positions, 0.1, True))

    def _expanded_flops(self) -> float:
        up, tokens = NOPE + VALUE, EXPANDED_TOKENS
        return FEW_HEADS * (2 * LATENT * up * tokens + (up + ROPE) * tokens * (tokens + 1))

    def _normal(self, *shape: int) -> np.ndarray:
        return self._rng.standard_normal(shape, np.float32)


def verb_rates(pool: Pool, stopwatch: Stopwatch) -> tuple[VerbRate, ...]:
    """Of the small verbs, from one token and from many; and of Python, which makes the calls that are not recorded."""
    found = []
    for verb, values, bind in _small_verbs(pool):
        few, many = (stopwatch.time_recorded(pool, [bind(tokens)] * REPEATED) for tokens in (1, TOKENS))
        each = max(0.0, many - few) / ((TOKENS - 1) * values)
        found.append(VerbRate(verb, max(0.0, few - values * each), each))
    return (*found, _dequantize_rate(pool, stopwatch), *_python_rates(pool, stopwatch))


def _small_verbs(pool: Pool) -> list[tuple[SmallVerb, int, Callable[[int], Callable[[], object]]]]:
    """Name, values of a token, and what binds the verb to so many tokens."""
    rng, norm = np.random.default_rng(0), np.ones(HIDDEN, np.float32)
    embedding = Matrix(random_rows(pool, rng, "Q8_0", (EXPERTS, HIDDEN), 1.0), "Q8_0", HIDDEN)
    layer = cache_layer(TOKENS // PAGE, "f16", LATENT + ROPE)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def bind_embed(tokens: int) -> Callable[[], object]:
        ids = np.arange(tokens) % EXPERTS
        return lambda: embed(pool, embedding, ids)

    def bind_rms_norm(tokens: int) -> Callable[[], object]:
        x, rest = normal(tokens, HIDDEN), normal(tokens, HIDDEN) * np.float32(1e-6)
        return lambda: rms_norm(pool, x, norm, 1e-6, add=rest)

    def bind_rope(tokens: int) -> Callable[[], object]:
        x, angles = normal(tokens, FEW_HEADS, ROPE), normal(tokens, ROPE // 2)
        cos, sin = np.cos(angles), np.sin(angles)
        return lambda: rope(pool, x, cos, sin)

    def bind_write_cache(tokens: int) -> Callable[[], object]:
        latent, key, slots = normal(tokens, LATENT), normal(tokens, ROPE), np.arange(tokens)
        return lambda: write_cache(pool, layer, latent, key, slots)

    def bind_route(tokens: int) -> Callable[[], object]:
        logits, bias = normal(tokens, EXPERTS), normal(EXPERTS)
        return partial(
            route,
            pool,
            logits,
            bias,
            used=USED,
            groups=1,
            groups_used=1,
            gating="sigmoid",
            group_score="top2",
            normalize=True,
            scale=1.0,
        )

    return [
        ("embed", HIDDEN, bind_embed),
        ("rms_norm", HIDDEN, bind_rms_norm),
        ("rope", FEW_HEADS * ROPE, bind_rope),
        ("write_cache", LATENT + ROPE, bind_write_cache),
        ("route", EXPERTS, bind_route),
    ]


def _dequantize_rate(pool: Pool, stopwatch: Stopwatch) -> VerbRate:
    """Into new memory, as W_uk and W_uv of a layer are."""
    rows = random_rows(pool, np.random.default_rng(0), "Q8_0", (MANY_HEADS * NOPE, LATENT), 1.0)
    few, many = (Matrix(rows[: heads * NOPE], "Q8_0", LATENT) for heads in (1, MANY_HEADS))
    small, large = (stopwatch.time(partial(dequantize, pool, w)) for w in (few, many))
    weights = (MANY_HEADS - 1) * NOPE * LATENT
    each = max(0.0, large - small) / weights
    return VerbRate("dequantize", max(0.0, small - NOPE * LATENT * each), each)


def _python_rates(pool: Pool, stopwatch: Stopwatch) -> tuple[VerbRate, VerbRate]:
    x, norm = np.ones((1, HIDDEN), np.float32), np.ones(HIDDEN, np.float32)
    call = partial(rms_norm, pool, x, norm, 1e-6)
    seconds = max(0.0, stopwatch.time(call) - stopwatch.time_recorded(pool, [call] * REPEATED))
    return VerbRate("call", seconds, 0.0), VerbRate("pass", CALLS_OF_A_PASS * seconds, 0.0)
