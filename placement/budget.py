"""What memory must hold beside weights: the cache of the promised contexts, activations, graph and ring buffers."""

from dataclasses import dataclass

from placement.arrange import node_shares
from placement.cost import (
    CHUNK,
    activation_bytes,
    cache_layer_bytes,
    expanded_bytes,
    expansion_bytes,
    logits_bytes,
)
from placement.errors import InvalidDocument, PlacementError
from placement.machine import Machine
from placement.model import Model
from placement.plan import Settings

DEFAULT_CONTEXT = 8192
WORKING = 512 << 20  # Python and compiled kernels take less than 350 MiB (tests.test_loading)
THREAD = 4 << 20  # scratch memory of a thread
CORE_THREADS = 2  # a core of most CPUs runs two at once; a machine's rates are those of one for each
GPU_CONTEXT = 600 << 20  # of a CUDA context with torch and its kernels, and what its allocator cannot use
GPU_GRAPH = 128 << 20
PASSES = 2  # of prompts, at most, that are under way at once where there are several sequences
# Kept for streaming experts to the GPU, which nothing does yet: buffers of which one arrives, one is used, one is next;
# and passes long enough for it
RING_SLOTS, RING_EXPERTS, STREAMED_CHUNK = 3, 8, 4096


@dataclass(frozen=True)
class Budget:
    """Bytes. `cache_layer`: of the promised contexts, in one layer."""

    cache_layer: int
    cpu_buffers: int
    cpu_buffers_beside_gpu: int
    gpu_buffers: int
    vram: int  # that may be used; 0: no GPU
    nodes: tuple[int, ...]  # that may be used of each


def resolve(model: Model, machine: Machine, settings: Settings) -> Settings:
    """With nothing left to choose but gpu_experts. Raises PlacementError where they cannot be met at all."""
    d, values = model.dimensions, settings.to_json()
    for name in ("context", "sequences", "threads"):
        if values[name] == 0:
            raise InvalidDocument(f"{name} = 0", "1 or more", f"change --{name}")
    most = CORE_THREADS * machine.cpu.threads
    if settings.threads is not None and settings.threads > most:
        limit = f"{CORE_THREADS} for each of the {machine.cpu.threads} cores are the most that run at once"
        raise PlacementError(f"{settings.threads} threads", limit, f"use --threads {machine.cpu.threads}")
    context = settings.context or min(d.context_length, DEFAULT_CONTEXT)
    if context > d.context_length:
        found = f"a context of {context} tokens"
        limit = f"{model.name} was made for at most {d.context_length}"
        raise PlacementError(found, limit, f"use --context {d.context_length} or less")
    if settings.device == "cuda" and machine.gpu is None:
        raise PlacementError("device 'cuda'", f"{machine.name} has no GPU", "use --device cpu")
    _check_counts(model, settings)
    if settings.gpu_experts is not None and settings.gpu_experts > d.experts * len(model.routed_by_layer):
        found, limit = f"{settings.gpu_experts} experts on the GPU", f"{d.experts} x {len(model.routed_by_layer)} exist"
        raise PlacementError(found, limit, "lower --gpu-experts")
    device = settings.device if machine.gpu is not None else "cpu"
    return Settings(
        context=context,
        sequences=settings.sequences,
        kv=settings.kv,
        threads=settings.threads or machine.cpu.threads,
        device=device,
        gpu_memory=settings.gpu_memory,
        memory=settings.memory,
        mmap=settings.mmap,
        gpu_experts=settings.gpu_experts,
        expert_counts=settings.expert_counts,
    )


def _check_counts(model: Model, settings: Settings) -> None:
    if settings.expert_counts is None:
        return
    wanted = [model.dimensions.experts] * len(model.routed_by_layer)
    found = [len(row) for row in settings.expert_counts]
    if found != wanted:
        limit = f"{model.name} has {len(wanted)} layers of {model.dimensions.experts} experts"
        raise PlacementError(f"expert counts of {len(found)} layers", limit, "count the experts of this very model")


def budget(model: Model, machine: Machine, settings: Settings) -> Budget:
    """`settings` as `resolve` returns them."""
    d = model.dimensions
    assert settings.context is not None and settings.threads is not None, "settings are resolved first"
    scratch = WORKING + THREAD * settings.threads + expansion_bytes(d)
    scratch += model.by_part["embedding"][0].nbytes if model.tied else 0  # a rearranged copy is the head
    largest = max((sum(t.nbytes for t in ts) for ts in model.routed_by_layer.values()), default=0) // d.experts
    streams = RING_SLOTS * RING_EXPERTS * largest + 3 * 4 * STREAMED_CHUNK * d.hidden_size
    passes = min(PASSES, settings.sequences)
    one_of = max(expanded_bytes(d, settings.context), logits_bytes(d))  # attention is over when the head comes
    vram = 0 if machine.vram is None else machine.vram.bytes
    return Budget(
        cache_layer=cache_layer_bytes(d, settings.kv, settings.context, settings.sequences),
        cpu_buffers=scratch + passes * activation_bytes(d, min(CHUNK, settings.context)),
        cpu_buffers_beside_gpu=scratch + passes * activation_bytes(d, min(STREAMED_CHUNK, settings.context)),
        gpu_buffers=GPU_CONTEXT
        + GPU_GRAPH
        + expansion_bytes(d)
        + passes * activation_bytes(d, CHUNK)
        + one_of
        + streams,
        vram=vram if settings.gpu_memory is None else min(vram, settings.gpu_memory),
        nodes=tuple(_nodes(machine, settings.memory)),
    )


def _nodes(machine: Machine, limit: int | None) -> list[int]:
    """Where less than all may be used, what is used of it is divided as if it were all that there is to divide."""
    sizes = [node.bytes for node in machine.nodes]
    if limit is None or limit >= sum(sizes):
        return sizes
    return node_shares(limit, sizes, [node.read_bandwidth for node in machine.nodes])
