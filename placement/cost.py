"""What a model costs, whatever the machine: bytes and floating-point operations of its parts, one formula a function.

T tokens of a pass, L tokens in the cache, H heads, C = kv_lora latent, R rope, N nope and V value dimensions of a head,
Q = q_lora, E experts, k of them used by a token, D hidden size, F width of an expert. A multiply-add is two FLOP.
"""

from math import exp, lgamma, log, log1p

from placement.model import Dimensions, Model, Part, Tensor

PAGE = 64  # tokens; the cache is handed out in pages
CHUNK = 1024  # tokens of a pass (hetero.engine.CHUNK)
HALVES_FROM = 256  # of a pass that a GPU has a part in, from which it is two (hetero.hybrid.HALVES_FROM)
# The absorbed form multiplies more slowly by this factor (hetero.attention.EXPANDED_SPEED)
EXPANDED_SPEED = 1.25
ROW_BLOCK = 32  # rows of absorbed attention that share a cached token made float32 (cpu_kernels.attention_absorbed)
EXPANDED_BYTES = 512 << 20  # of keys and values at a time, on a GPU (gpu_kernels.attention_expanded)
KEYS = 128  # tokens in multiples of which they are expanded there
HEAD_ROWS = 128  # tokens whose logits a GPU holds at a time (hetero.hybrid.HEAD_ROWS)
_CACHE_BYTES = {"f32": (1, 4), "f16": (1, 2), "q8_0": (32, 34)}  # values and bytes of a block
_READ_WHOLE: tuple[Part, ...] = ("mla", "shared expert", "dense ffn", "head", "router", "norms")


def part_bytes(model: Model, part: Part) -> int:
    """Bytes of all tensors of a part."""
    return sum(tensor.nbytes for tensor in model.by_part[part])


def product_flops(tensor: Tensor) -> int:
    """Of one column, of all experts where there are several: a multiplication and an addition for each weight of M x K,
    2 M K."""
    return 2 * tensor.weights


def part_flops(model: Model, part: Part, tokens: int) -> int:
    """Of a part's products with T tokens, each of which uses k of E routed experts. Attention over the cache is
    `absorbed_flops` or `expanded_flops`; the embedding is looked up."""
    tensors = model.by_part[part]
    if part == "head" and model.tied:
        tensors = model.by_part["embedding"]
    elif part in ("embedding", "norms", "nextn", "other"):
        return 0
    flops = tokens * sum(product_flops(tensor) for tensor in tensors if len(tensor.shape) > 1)
    if part == "routed experts":
        return flops * model.dimensions.experts_used // model.dimensions.experts
    return flops


def decode_bytes(model: Model, part: Part) -> int:
    """Bytes that one decoded token reads of a part: all of it, but k of E experts, and a row of the embedding."""
    whole = part_bytes(model, part)
    if part == "routed experts":
        return whole * model.dimensions.experts_used // model.dimensions.experts
    if part == "embedding":
        return whole // max(model.dimensions.vocab_size, 1)
    if part == "head" and model.tied:
        return part_bytes(model, "embedding")
    return whole if part in _READ_WHOLE else 0


def touched_share(probability: float, tokens: int) -> float:
    """Expected share of experts that T tokens touch, where each token chooses each with this probability, k/E where
    nothing else is known: 1 - (1 - p)^T.

    Each token misses an expert with the probability 1 - p. Tokens choose independently here, and every expert is as
    likely: then groups change nothing, because a group and an expert in it are as likely as any other.
    """
    return 1.0 - (1.0 - probability) ** tokens


def column_shares(tokens: int, probability: float) -> dict[int, float]:
    """c -> the share of experts that c of T tokens choose: binomial, C(T, c) p^c (1 - p)^(T - c), by its logarithm.

    Shares below 1e-12 are left out.
    """
    if not 0.0 < probability < 1.0:
        return {tokens if probability else 0: 1.0}
    chosen, missed, shares = log(probability), log1p(-probability), dict[int, float]()
    for c in range(tokens + 1):
        ways = lgamma(tokens + 1) - lgamma(c + 1) - lgamma(tokens - c + 1)
        share = exp(ways + c * chosen + (tokens - c) * missed)
        if share >= 1e-12:
            shares[c] = share
        elif c > tokens * probability:
            break
    return shares


def pairs(tokens: int, depth: int) -> int:
    """Pairs of a new token and a token that it attends: `depth` earlier ones, and the new ones up to itself.

    T L + T (T + 1) / 2
    """
    return tokens * depth + tokens * (tokens + 1) // 2


def absorbed_flops(dimensions: Dimensions, tokens: int, depth: int) -> int:
    """Of one layer's absorbed attention: scores over C + R values and sums over C, for each head and pair:
    H (2 (C + R) + 2 C) pairs."""
    latent, rope = dimensions.kv_lora_rank, dimensions.rope_dim
    return dimensions.heads * (4 * latent + 2 * rope) * pairs(tokens, depth)


def absorbed_values(dimensions: Dimensions, tokens: int, depth: int) -> int:
    """Cached values that one layer's absorbed attention makes float32: C + R of every cached token that a block of
    ROW_BLOCK rows sees, for each block. Rows are the heads of one token after the other."""
    rows = tokens * dimensions.heads
    last = (min(rows, first + ROW_BLOCK) - 1 for first in range(0, rows, ROW_BLOCK))
    return dimensions.cache_width * sum(depth + 1 + row // dimensions.heads for row in last)


def expanded_flops(dimensions: Dimensions, tokens: int, depth: int) -> int:
    """Of one layer's expanded attention: keys and values of every cached token, H 2 C (N + V), and for each pair
    scores over N + R and sums over V, H 2 (N + R + V)."""
    up = dimensions.nope_dim + dimensions.value_dim
    expand = 2 * dimensions.kv_lora_rank * up * (depth + tokens)
    return dimensions.heads * (expand + 2 * (up + dimensions.rope_dim) * pairs(tokens, depth))


def absorbed_limit(dimensions: Dimensions) -> int:
    """Up to so many tokens of a pass attention is absorbed (hetero.attention.absorbed_limit): the number at which both
    forms take as long where the cache is deep, EXPANDED_SPEED (2 C + R) T = C (N + V) + (N + V + R) T."""
    latent, up = dimensions.kv_lora_rank, dimensions.nope_dim + dimensions.value_dim
    absorbed, expanded = EXPANDED_SPEED * (2 * latent + dimensions.rope_dim), up + dimensions.rope_dim
    return int(latent * up / max(absorbed - expanded, 1))


def cache_row_bytes(dimensions: Dimensions, kv: str) -> int:
    """Of one token in one layer: C + R values in whole blocks of the cache's type."""
    values, size = _CACHE_BYTES[kv]
    return -(-dimensions.cache_width // values) * size


def cache_layer_bytes(dimensions: Dimensions, kv: str, context: int, sequences: int) -> int:
    """Of one layer, for `sequences` x `context` tokens in whole pages."""
    return -(-context // PAGE) * PAGE * sequences * cache_row_bytes(dimensions, kv)


def activation_bytes(dimensions: Dimensions, tokens: int) -> int:
    """float32 values that live at once in a pass of T tokens: the residual stream, its norm, the sum and the result
    (4 D), queries H (N + R), the heads' results H V, latents; those of the absorbed form, 2 H C, for no more tokens
    than it is used for; and gate, up of the widest network, k experts and the shared ones side by side."""
    d = dimensions
    width = max(2 * d.intermediate_size, 2 * (d.experts_used + d.shared_experts) * d.expert_intermediate_size)
    heads = d.heads * (d.nope_dim + d.rope_dim + d.value_dim) + d.q_lora_rank + d.cache_width
    absorbed = 2 * d.heads * d.kv_lora_rank * min(tokens, absorbed_limit(d))
    return 4 * (tokens * (4 * d.hidden_size + heads + width) + absorbed)


def expansion_bytes(dimensions: Dimensions) -> int:
    """W_uk and W_uv of one layer as float32, which expanded attention needs: 4 H C (N + V)."""
    return 4 * dimensions.heads * dimensions.kv_lora_rank * (dimensions.nope_dim + dimensions.value_dim)


def expanded_bytes(dimensions: Dimensions, context: int) -> int:
    """float16 values that expanded attention holds on a GPU beside W_uk and W_uv: the latents of all L tokens,
    2 L (C + R), and keys and values, 2 L (N + V) for a head, of as many heads as EXPANDED_BYTES hold, of one at least.
    """
    d, tokens = dimensions, -(-context // KEYS) * KEYS
    head = 2 * tokens * (d.nope_dim + d.value_dim)
    return 2 * tokens * d.cache_width + min(d.heads * head, max(EXPANDED_BYTES, head))


def logits_bytes(dimensions: Dimensions) -> int:
    """float32 logits that a GPU holds at a time."""
    return 4 * HEAD_ROWS * dimensions.vocab_size
