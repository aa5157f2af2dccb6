"""What a plan says: the place of every tensor, the bytes in every memory, the speed that follows."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from placement.document import Document

Bound = Literal[
    "dram bandwidth", "cpu arithmetic", "vram bandwidth", "gpu arithmetic", "pcie", "disk", "overhead"
]  # what a speed is bound by: the largest share of its seconds


@dataclass(frozen=True)
class Settings(Document):
    """What the caller wants; names are those of hetero.RunConfig where it has them. None: the planner chooses."""

    context: int | None = None  # tokens a sequence; None: 8192, or the model's if that is less
    sequences: int = 1
    kv: Literal["f32", "f16", "q8_0"] = "f16"
    threads: int | None = None  # None: those of the machine's cpu
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpu_memory: int | None = None  # at most so many bytes of VRAM
    memory: int | None = None  # at most so many bytes of DRAM, all nodes together
    mmap: bool | None = None  # None: where the weights do not fit
    gpu_experts: int | None = None  # routed experts on the GPU, each one of one layer; None: as many as fit
    expert_counts: tuple[tuple[int, ...], ...] | None = None  # of each MoE layer, how often each expert was chosen


@dataclass(frozen=True)
class Placed(Document):
    """A tensor in a memory, or a part of one: then `name` comes again with the other places.

    `experts`: these experts of the tensor, whole. None: all of it; or, where several nodes are named, each one's share
    of the rows (hetero.nodes cuts them); or, beside "disk", what the page cache is expected to hold.
    """

    name: str
    place: str  # name of a memory
    bytes: int
    experts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class MemoryUse(Document):
    name: str
    bytes: int  # that may be used
    weight_bytes: int
    kv_bytes: int
    buffer_bytes: int

    @property
    def free_bytes(self) -> int:
        """Negative where it does not fit."""
        return self.bytes - self.weight_bytes - self.kv_bytes - self.buffer_bytes


@dataclass(frozen=True)
class PartSeconds(Document):
    """A part of the model in one decode step or one prefill, on one processor. Parts run one after the other."""

    part: str  # of placement.model.PARTS, or "attention" (over the cache), "other"
    place: str  # "cpu", "gpu0", "disk", "pcie"
    seconds: float
    bound_by: Bound


@dataclass(frozen=True)
class DecodeSpeed(Document):
    depth: int  # tokens in the cache
    tokens_per_second: float
    ceiling_tokens_per_second: float  # serial, by bandwidths alone
    bound_by: Bound
    overlapped_tokens_per_second: float  # the GPU computes its experts while the CPU computes its own
    overlapped_ceiling_tokens_per_second: float
    parts: tuple[PartSeconds, ...]


@dataclass(frozen=True)
class PrefillSpeed(Document):
    prompt_tokens: int
    tokens_per_second: float
    bound_by: Bound
    overlapped_tokens_per_second: float  # the GPU computes one half of a pass while the CPU has the other's experts
    parts: tuple[PartSeconds, ...]


@dataclass(frozen=True)
class Plan(Document):
    """The document of `hetero plan --json`; `placement.replan` reads one that was edited."""

    REMARKS = "notes", "published"

    model: str
    machine: str
    settings: Settings  # with nothing left to choose but gpu_experts
    mode: Literal["resident", "mmap"]
    threads: int
    fits: bool
    model_bytes: int
    memories: tuple[MemoryUse, ...]
    decode_ceiling_tokens_per_second: float  # serial, depth 0
    decode: tuple[DecodeSpeed, ...]
    prefill: tuple[PrefillSpeed, ...]
    tensors: tuple[Placed, ...]

    @cached_property
    def by_tensor(self) -> dict[str, tuple[Placed, ...]]:
        return by_tensor(self.tensors)


def by_tensor(placed: Iterable[Placed]) -> dict[str, tuple[Placed, ...]]:
    found: dict[str, tuple[Placed, ...]] = {}
    for one in placed:
        found[one.name] = (*found.get(one.name, ()), one)
    return found
