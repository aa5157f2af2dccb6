"""A machine as the planner sees it: memories, links between them, processors and the rates of their kernels.

Measured (hetero.probe) or described (placement.known_parts). Bytes, bytes per second, seconds, FLOP per second; a
multiply-add is two FLOP. All rates are those of a processor's chosen threads working together.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from placement.document import Document
from placement.errors import InvalidDocument

CPU, GPU, DISK = "cpu", "gpu0", "disk"  # names of the processors and the disk
KV_TYPES = ("f32", "f16", "q8_0")


@dataclass(frozen=True)
class Memory(Document):
    """`name`: "gpu0", "node0", "node1", ..., "disk"."""

    name: str
    kind: Literal["vram", "dram", "disk"]
    bytes: int  # that the runtime may use: what other processes and the system hold is already taken off
    read_bandwidth: float  # bytes/s; of a node: by its own cores, while the other nodes are read too, so that they add

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.read_bandwidth:
            found = f"{self.name:.40}: read_bandwidth = 0 bytes/s"
            raise InvalidDocument(found, "more than 0", "correct it, or leave the memory out")


@dataclass(frozen=True)
class Link(Document):
    """PCIe between DRAM and the memory of a GPU, bytes/s; `latency`: seconds of the smallest transfer."""

    gpu: str
    to_gpu_pinned: float
    to_gpu_pageable: float
    from_gpu_pinned: float
    from_gpu_pageable: float
    latency: float

    def __post_init__(self) -> None:
        super().__post_init__()
        speeds = (self.to_gpu_pinned, self.to_gpu_pageable, self.from_gpu_pinned, self.from_gpu_pageable)
        if not all(speeds):
            raise InvalidDocument(f"link of {self.gpu:.40}: {speeds} bytes/s", "all more than 0", "correct it")


@dataclass(frozen=True)
class LinearRate(Document):
    """Products of a weight matrix [M, K] with c columns: call_seconds + 2 M K c / flops(c) seconds.

    `verb`: "linear" (dense matrices), "heads" (one small matrix for each head), "experts" (gate, SiLU, up, down and
    weighted sum of gated networks; c is then the number of tokens that chose an expert), "mapped" ("linear", with the
    weights as they are in the file, not rearranged). Only "linear" must be there: it stands in for the others.
    `flops_at`: (columns, FLOP/s), columns ascending from 1, with the weights streamed from memory, not from a cache.
    At 1 column this is the read bandwidth, as far as the kernel reaches it: FLOP/s = 2 bytes/s / bytes_per_weight.
    """

    verb: Literal["linear", "heads", "experts", "mapped"]
    type: str  # GGUF type name
    bytes_per_weight: float
    # Whatever the size: dispatch, barrier, quantization of a row of activations. As in a recorded step, which calls
    # native code only: what Python adds to a call outside of one is not counted
    call_seconds: float
    flops_at: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = [column for column, _ in self.flops_at]
        if columns[:1] != [1] or columns != sorted(set(columns)) or not all(flops for _, flops in self.flops_at):
            limit = "columns ascend from 1, FLOP/s are more than 0"
            raise InvalidDocument(f"LinearRate {self.verb} {self.type}: flops_at {self.flops_at}", limit, "correct it")
        if not self.bytes_per_weight:
            raise InvalidDocument(f"LinearRate {self.type}: bytes_per_weight = 0", "more than 0", "correct it")


@dataclass(frozen=True)
class AttentionRate(Document):
    """Latent attention over a cache of the type `kv`. FLOP are those of placement.cost, softmax not counted.

    One call is one layer: call_seconds + FLOP / rate. Absorbed: heads x (4 C + 2 R) FLOP for each pair of token and
    cached token; to which come `row_seconds` for each of tokens x heads rows, whose query is laid out and whose result
    is put together, and `value_seconds` for each cached value that is made float32, once for a block of 32 rows.
    Expanded: heads x 2 C (N + V) for each cached token, and heads x 2 (N + R + V) for each pair.
    """

    kv: Literal["f32", "f16", "q8_0"]
    call_seconds: float
    decode: float  # FLOP/s, absorbed, one token, depth of some thousands
    absorbed: float  # FLOP/s, absorbed, 16 to 128 tokens
    expanded: float  # FLOP/s, expanded, hundreds of tokens
    row_seconds: float = 0.0
    value_seconds: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.decode and self.absorbed and self.expanded):
            found = f"AttentionRate {self.kv}: {self.decode}, {self.absorbed}, {self.expanded} FLOP/s"
            raise InvalidDocument(found, "all more than 0", "correct it")


@dataclass(frozen=True)
class VerbRate(Document):
    """A small verb: call_seconds + values x value_seconds.

    "embed", "rms_norm": T x hidden; "rope": T x (heads + 1) x R; "write_cache": T x (C + R); "route": T x experts,
    without the product; "dequantize": weights to float32; "pass": T, whatever a whole forward pass costs beside its
    verbs; "call": what each of them costs where it is called from Python, instead of a recording. A verb that is
    missing costs nothing.
    """

    verb: Literal["pass", "call", "embed", "rms_norm", "rope", "write_cache", "route", "dequantize"]
    call_seconds: float
    value_seconds: float


@dataclass(frozen=True)
class Processor(Document):
    """`name`: "cpu" (all nodes together, it reads DRAM) or "gpu0" (it reads the memory of that name)."""

    name: str
    description: str  # for people: "AMD EPYC 9374F"
    threads: int  # of the pool; of a GPU: multiprocessors
    linear: tuple[LinearRate, ...]
    attention: tuple[AttentionRate, ...]
    verbs: tuple[VerbRate, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(rate.verb == "linear" for rate in self.linear):
            raise InvalidDocument(f"processor {self.name}: no LinearRate 'linear'", "one at least", "measure one")
        if not self.attention:
            raise InvalidDocument(f"processor {self.name}: no AttentionRate", "one at least", "measure one")


@dataclass(frozen=True)
class Machine(Document):
    name: str
    measured: bool  # False: described, from peak figures
    memories: tuple[Memory, ...]
    links: tuple[Link, ...]
    processors: tuple[Processor, ...]
    notes: tuple[str, ...] = ()  # for people: assumptions, what could not be measured

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [memory.name for memory in self.memories]
        if len(set(names)) < len(names) or not self.nodes:
            raise InvalidDocument(f"{self.name}: memories {names}", "names are unique, one is DRAM", "correct them")
        wanted = [CPU, GPU] if GPU in names else [CPU]
        if sorted(processor.name for processor in self.processors) != wanted:
            found = [processor.name for processor in self.processors]
            raise InvalidDocument(f"{self.name}: processors {found}", f"needed are {wanted}", "correct them")
        if [link.gpu for link in self.links] != wanted[1:]:
            raise InvalidDocument(f"{self.name}: {len(self.links)} links", "one for each GPU", "correct them")

    @cached_property
    def nodes(self) -> tuple[Memory, ...]:
        return tuple(memory for memory in self.memories if memory.kind == "dram")

    @cached_property
    def vram(self) -> Memory | None:
        return next((memory for memory in self.memories if memory.kind == "vram"), None)

    @cached_property
    def disk(self) -> Memory | None:
        return next((memory for memory in self.memories if memory.kind == "disk"), None)

    @cached_property
    def cpu(self) -> Processor:
        return next(processor for processor in self.processors if processor.name == CPU)

    @cached_property
    def gpu(self) -> Processor | None:
        return next((processor for processor in self.processors if processor.name == GPU), None)

    @property
    def dram_bytes(self) -> int:
        return sum(memory.bytes for memory in self.nodes)

    @property
    def dram_bandwidth(self) -> float:
        """Bytes/s of all nodes together, each read by its own cores."""
        return sum(memory.read_bandwidth for memory in self.nodes)
