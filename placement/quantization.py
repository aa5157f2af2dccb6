"""Types of quantized weights, their sizes, and which one each tensor of a `deepseek2` model gets.

The rules are those of llama.cpp's quantizer (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp,
read in November 2026) for this architecture, in words: every matrix gets the base type of the file, with these
exceptions. Output and embedding have types of their own. "down" (dense, shared, routed) and the unsplit attn_kv_b are
more sensitive than the rest: in most files some of their layers get more bits. A row that is not a whole number of
blocks falls back to a type with blocks of 32. Norms, router and its bias stay f32. The halves of a split attn_kv_b are
ordinary matrices; a row of attn_k_b has nope_dim (128) values, so it falls back wherever blocks have 256.

tests/test_presets.py holds every line below against the real quantizer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

# GGUF type name: values and bytes of a block. A row is a whole number of blocks.
BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "IQ4_NL": (32, 18),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_XS": (256, 136),
}
# Not of GGUF: DeepSeek-V3's published weights, 8-bit floats with an f32 scale for each 128 x 128 of them
# (https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md).
FP8, FP8_TILE = "F8_E4M3", 128

FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
FALLBACK |= dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL")


@dataclass(frozen=True)
class Spot:
    """Where a tensor stands among those of its kind."""

    name: str
    layer: int  # -1: outside of the layers
    layers: int
    index: int  # how many of its kind come before it: by layer, then by name


Rule = str | Callable[[Spot], str | None]  # None: the base type
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Quantization:
    """`base`: of every matrix; `rules`: by kind (see `kind_of`), what differs; `note`: for people."""

    base: str
    rules: Mapping[str, Rule] = field(default_factory=dict)
    note: str = ""


def more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _often(type: str, by: str = "layer") -> Rule:
    return lambda spot: type if more_bits(getattr(spot, by), spot.layers) else None


def _first(part: int, type: str, rest: str | None = None) -> Rule:
    """`type` in the first layers, 1 / `part` of them."""
    return lambda spot: type if spot.layer < spot.layers // part else rest


def _first_few(count: int, type: str, rest: str | None = None) -> Rule:
    return lambda spot: type if spot.index < count else rest


KV_PATH = ("attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight")


def _dynamic_down(spot: Spot) -> str | None:
    """Routed experts stay small, but for the first three layers that have any."""
    if "_exps" not in spot.name:
        return "Q6_K"
    return "Q3_K" if spot.index < 3 else None


# Unsloth's dynamic recipe for the R1 of January 2025 (https://unsloth.ai/blog/deepseekr1-dynamic), worked out from what
# loaders say of its tensors: 361 F32, 171 Q2_K, 3 Q3_K, 306 Q4_K, 184 Q6_K; 205,716 MiB of routed experts, 497 MiB of
# embedding, 9,886 MiB of the rest. https://github.com/ikawrakow/ik_llama.cpp/pull/259,
# https://github.com/ikawrakow/ik_llama.cpp/discussions/258. Later files of that name are mixed otherwise.
DYNAMIC: dict[str, Rule] = {
    "embedding": "Q4_K",
    "down": _dynamic_down,
    "gate and up": lambda spot: None if "_exps" in spot.name else "Q4_K",
    "attn_kv_b": "Q6_K",
    "attn_output": "Q4_K",
    "attention": lambda spot: "Q6_K" if spot.name.endswith(KV_PATH) else "Q4_K",
}

QUANTIZATIONS: dict[str, Quantization] = {
    "q8_0": Quantization("Q8_0", {"output": "Q8_0"}),
    "q6_k": Quantization("Q6_K"),
    "q5_k_m": Quantization("Q5_K", {"attn_kv_b": _often("Q6_K", "index"), "down": _often("Q6_K")}),
    "q4_k_m": Quantization("Q4_K", {"attn_kv_b": _often("Q6_K", "index"), "down": _often("Q6_K")}),
    "q4_k_s": Quantization("Q4_K", {"attn_kv_b": _first_few(4, "Q5_K"), "down": _first(8, "Q5_K")}),
    "q3_k_m": Quantization(
        "Q3_K", {"attn_kv_b": _first_few(2, "Q5_K", "Q4_K"), "down": _first(16, "Q5_K", "Q4_K"), "attn_output": "Q4_K"}
    ),
    "q2_k": Quantization("Q2_K", {"attn_kv_b": "Q3_K", "down": "Q3_K", "attn_output": "Q3_K"}),
    "ud-q2_k_xl": Quantization("Q2_K", DYNAMIC, "as unsloth's DeepSeek-R1 of January 2025"),
    "iq1_s": Quantization(
        "IQ1_S",
        {
            "output": "Q5_K",
            "embedding": "Q2_K",
            "attn_kv_b": "Q4_K",
            # counted by tensor here, not by layer: a layer with experts has two
            "down": lambda spot: "Q2_K" if spot.index < spot.layers // 8 else None,
            "attn_output": "IQ2_XXS",
        },
    ),
    "fp8": Quantization(FP8, {"output": "BF16", "embedding": "BF16"}, "no kernel yet: to plan with"),
}


def tensor_bytes(type: str, shape: tuple[int, ...]) -> int:
    """`shape`: columns last."""
    *stack, columns = shape
    if type == FP8:
        *matrices, rows = stack
        scales = -(-rows // FP8_TILE) * -(-columns // FP8_TILE)
        return prod(matrices) * (rows * columns + 4 * scales)
    values, size = BLOCKS[type]
    assert columns % values == 0, f"{type}: a row of {columns} is not a whole number of blocks of {values}"
    return prod(stack) * (columns // values) * size


def kind_of(name: str) -> str:
    """The kinds that rules tell apart: "f32" (never quantized), "output", "embedding", "attn_kv_b", ..."""
    if not name.endswith(".weight") or "_norm." in name or "ffn_gate_inp." in name:
        return "f32"
    outside = {"output.weight": "output", "token_embd.weight": "embedding"}
    if name in outside:
        return outside[name]
    for kind in ("attn_kv_b", "attn_output"):
        if f"{kind}." in name:
            return kind
    return "attention" if ".attn_" in name else "down" if ".ffn_down" in name else "gate and up"


def types_of(quantization: str, shapes: Shapes, layers: int) -> dict[str, str]:
    """The GGUF type of every tensor of a file with tensors of these names and shapes; the head is not tied."""
    recipe, counted = QUANTIZATIONS[quantization], dict[tuple[str, bool], int]()
    types = {}
    for layer, name in sorted((_layer(name), name) for name in shapes):
        kind = kind_of(name)
        if kind == "f32":
            types[name] = "F32"
            continue
        # unsloth's recipe counts layers with experts, the quantizer all tensors of a kind
        counter = kind, recipe.rules is DYNAMIC and "_exps" in name
        spot = Spot(name, layer, layers, counted.get(counter, 0))
        counted[counter] = spot.index + 1
        rule = recipe.rules.get(kind, "Q6_K" if kind == "output" else recipe.base)
        chosen = rule if isinstance(rule, str) else rule(spot) or recipe.base
        types[name] = _fitting(chosen, shapes[name][-1])
    return types


def _layer(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


def _fitting(type: str, columns: int) -> str:
    if type == FP8 or columns % BLOCKS[type][0] == 0:
        return type
    smaller = FALLBACK.get(type, "F16")
    return smaller if columns % BLOCKS[smaller][0] == 0 else "F16"
