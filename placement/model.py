"""What a model is made of, as far as its place and its cost go: dimensions, and tensors by name, type, shape, bytes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

from placement.document import Document
from placement.errors import InvalidDocument

Part = Literal[
    "mla", "shared expert", "dense ffn", "head", "router", "norms", "routed experts", "embedding", "nextn", "other"
]
PARTS: tuple[Part, ...] = (
    "mla",
    "shared expert",
    "dense ffn",
    "head",
    "router",
    "norms",
    "routed experts",
    "embedding",
    "nextn",
    "other",
)
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_OUTSIDE: dict[str, Part] = {
    "token_embd.weight": "embedding",
    "output.weight": "head",
    "output_norm.weight": "norms",
}


@dataclass(frozen=True)
class Dimensions(Document):
    """Of a `deepseek2` model; `layers` excludes the trailing multi-token-prediction layers."""

    vocab_size: int
    hidden_size: int
    layers: int
    dense_layers: int  # leading layers with a dense FFN
    nextn_layers: int  # trailing multi-token-prediction layers
    heads: int
    q_lora_rank: int  # 0: one attn_q instead of attn_q_a, attn_q_b
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    intermediate_size: int
    expert_intermediate_size: int
    experts: int  # of a layer
    experts_used: int  # by a token
    shared_experts: int
    context_length: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.experts_used <= self.experts or self.dense_layers > self.layers:
            found = f"{self.experts_used} of {self.experts} experts, {self.dense_layers} of {self.layers} layers dense"
            raise InvalidDocument(f"Dimensions: {found}", "parts of a whole", "correct them")

    @property
    def cache_width(self) -> int:
        """Values cached per token and layer: the latent and the rope key."""
        return self.kv_lora_rank + self.rope_dim

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers


@dataclass(frozen=True)
class Tensor(Document):
    """As in the file: GGUF name, GGUF type name, shape with columns (the dimension that is contiguous) last."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int

    @cached_property
    def weights(self) -> int:
        return prod(self.shape)

    @cached_property
    def layer(self) -> int | None:
        """None: outside of the layers."""
        block = _BLOCK.fullmatch(self.name)
        return int(block[1]) if block else None


@dataclass(frozen=True)
class Model(Document):
    name: str
    dimensions: Dimensions
    tensors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({tensor.name for tensor in self.tensors}) < len(self.tensors):
            raise InvalidDocument(f"{self.name}: two tensors of one name", "names are unique", "correct the list")

    @cached_property
    def nbytes(self) -> int:
        """Of all tensors, those of multi-token prediction included."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def by_part(self) -> dict[Part, tuple[Tensor, ...]]:
        """Every part, in the order of PARTS; its tensors in the order of the file."""
        found: dict[Part, list[Tensor]] = {part: [] for part in PARTS}
        for tensor in self.tensors:
            found[part_of(tensor.name, self.dimensions.layers)].append(tensor)
        return {part: tuple(tensors) for part, tensors in found.items()}

    @cached_property
    def routed_by_layer(self) -> dict[int, tuple[Tensor, ...]]:
        """Layer -> its gate, up and down of all experts, each [experts, rows, columns]."""
        return _by_layer(self.by_part["routed experts"])

    @cached_property
    def tied(self) -> bool:
        """The head is the embedding once more: a second, rearranged copy of it is made at load."""
        return not self.by_part["head"] and bool(self.by_part["embedding"])


def _by_layer(tensors: Iterable[Tensor]) -> dict[int, tuple[Tensor, ...]]:
    found: dict[int, tuple[Tensor, ...]] = {}
    for tensor in tensors:
        assert tensor.layer is not None, tensor.name
        found[tensor.layer] = (*found.get(tensor.layer, ()), tensor)
    return dict(sorted(found.items()))


def part_of(name: str, layers: int) -> Part:
    """The part of the model that a tensor belongs to. Blocks from `layers` on are multi-token prediction."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _OUTSIDE.get(name, "other")
    inside = block[2]
    if int(block[1]) >= layers or inside.startswith("nextn."):
        return "nextn"
    if "_norm" in inside:
        return "norms"
    if inside.startswith(("ffn_gate_inp", "exp_probs_b")):
        return "router"
    if inside.startswith("attn_"):
        return "mla"
    if inside.startswith("ffn_"):
        return "shared expert" if "_shexp" in inside else "routed experts" if "_exps" in inside else "dense ffn"
    return "other"
