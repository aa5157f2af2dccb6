"""`make_plan`: a place for every tensor, or the reason why there is none and what would fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from placement.arrange import (
    Divider,
    OnGpu,
    even_shares,
    fill_gpu,
    fits_nodes,
    in_memory,
    node_shares,
    placed_tensors,
    rest_of,
)
from placement.budget import Budget, budget, resolve
from placement.errors import DoesNotFit
from placement.machine import GPU, Machine
from placement.model import Model
from placement.nearest import alternatives
from placement.plan import MemoryUse, Placed, Plan, Settings
from placement.predict import Predictor

DEPTHS = (0, 4096, 32768)  # at which decode is predicted, and at the end of the promised context
PROMPTS = (64, 512, 4096)  # tokens; and as many as the context holds
ANSWER = 512  # tokens decoded in the job by which plans are compared


@dataclass(frozen=True)
class Arrangement:
    """Who holds what, not yet predicted."""

    mode: Literal["resident", "mmap"]
    memories: tuple[MemoryUse, ...]
    tensors: tuple[Placed, ...]


def make_plan(model: Model, machine: Machine, settings: Settings | None = None) -> Plan:
    """The plan for these settings. Raises DoesNotFit with the nearest settings that do, or PlacementError."""
    resolved = resolve(model, machine, settings or Settings())
    try:
        found = _arrangements(model, machine, resolved)
    except DoesNotFit as error:
        remedy = error.remedy or alternatives(model, resolved, lambda *changed: _fits(changed[0], machine, changed[1]))
        remedy = remedy or "no smaller context or quantization would: free memory, or add some"
        raise DoesNotFit(error.found, error.limit, remedy) from None
    return min((predicted(model, machine, resolved, one) for one in found), key=job_seconds)


def _fits(model: Model, machine: Machine, settings: Settings) -> bool:
    try:
        _arrangements(model, machine, settings)
    except DoesNotFit:
        return False
    return True


def _arrangements(model: Model, machine: Machine, settings: Settings) -> list[Arrangement]:
    """Those to choose from, one at least. A GPU may be left alone unless it was asked for: few layers on it, each
    reached over PCIe, may make `job_seconds` longer; and beside it DRAM holds the activations of longer passes."""
    if settings.device != "auto" or settings.gpu_experts is not None:
        return [arrange(model, machine, settings)]
    without = replace(settings, device="cpu")
    try:
        found = arrange(model, machine, settings)
    except DoesNotFit:
        return [arrange(model, machine, without)]
    if not any(one.place == GPU for one in found.tensors):
        return [found]
    try:
        return [found, arrange(model, machine, without)]
    except DoesNotFit:
        return [found]


def job_seconds(plan: Plan) -> float:
    """Of the longest prompt that the context holds, and an answer at that depth."""
    prompt, decode = plan.prefill[-1], plan.decode[-1]
    return prompt.prompt_tokens / prompt.tokens_per_second + ANSWER / decode.tokens_per_second


def arrange(model: Model, machine: Machine, settings: Settings) -> Arrangement:
    """`settings` as `placement.budget.resolve` returns them."""
    needs = budget(model, machine, settings)
    gpu = _on_gpu(model, settings, needs)
    buffers = needs.cpu_buffers_beside_gpu if gpu.tensors else needs.cpu_buffers
    cache = (model.dimensions.layers - gpu.cached_layers) * needs.cache_layer
    rest = rest_of(model, gpu)
    weights, room = sum(one.nbytes for one in rest), sum(needs.nodes) - cache - buffers
    if room < 0:
        found = f"the cache for {settings.sequences} x {settings.context} tokens in {settings.kv} and working memory"
        raise DoesNotFit(f"{found} need {_gib(cache + buffers)}", f"{_gib(sum(needs.nodes))} of DRAM may be used")
    bandwidths = [node.read_bandwidth for node in machine.nodes]
    resident = weights <= room and fits_nodes(weights + cache + buffers, needs.nodes, bandwidths)
    mapped = settings.mmap or not resident
    if not resident and (settings.mmap is False or machine.disk is None):
        raise _too_much(weights + cache + buffers, machine, needs)
    disk = machine.disk.bytes if machine.disk else 0
    if weights - room > disk:
        raise DoesNotFit(f"{_gib(weights - room)} of weights are left for the disk", f"it holds {_gib(disk)}")
    kept = in_memory(rest, room) if mapped else {one.tensor.name: one.nbytes for one in rest}
    held = cache + buffers + sum(kept.values())
    cut = Divider(node_shares(held, list(needs.nodes), bandwidths))
    caches, scratch = cut.take(cache), cut.take(buffers)
    tensors = placed_tensors(model, gpu, kept, [node.name for node in machine.nodes], cut)
    others = {node.name: pair for node, *pair in zip(machine.nodes, caches, scratch, strict=True)}
    if gpu.tensors:
        others[GPU] = [gpu.cached_layers * needs.cache_layer, needs.gpu_buffers]
    limits = dict(zip((node.name for node in machine.nodes), needs.nodes, strict=True)) | {GPU: needs.vram}
    memories = memory_use(machine, limits, tensors, others)
    return Arrangement("mmap" if mapped else "resident", memories, tuple(tensors))


def _too_much(held: int, machine: Machine, needs: Budget) -> DoesNotFit:
    found, total = f"weights, cache and working memory need {_gib(held)} of DRAM", sum(needs.nodes)
    if held > total:
        return DoesNotFit(found, f"{_gib(total)} may be used")
    even = even_shares(held, [node.read_bandwidth for node in machine.nodes])
    node, share, size = max(zip(machine.nodes, even, needs.nodes, strict=True), key=lambda one: one[1] - one[2])
    found += f", {_gib(share)} of them on {node.name}, whose threads read them"
    return DoesNotFit(found, f"{_gib(size)} of {node.name} may be used")


def _on_gpu(model: Model, settings: Settings, needs: Budget) -> OnGpu:
    gpu = OnGpu(0)
    if settings.device != "cpu" and needs.vram > needs.gpu_buffers:
        gpu = fill_gpu(model, settings, needs.vram - needs.gpu_buffers, needs.cache_layer)
    if settings.device == "cuda" and not gpu.tensors:
        found = f"a layer's attention, {settings.sequences} x {settings.context} cached tokens and buffers of"
        raise DoesNotFit(f"{found} {_gib(needs.gpu_buffers)}", f"{_gib(needs.vram)} of VRAM may be used")
    there = sum(map(len, gpu.experts.values()))
    if settings.gpu_experts is not None and there < settings.gpu_experts:
        remedy = f"use --gpu-experts {there}, or leave it out"
        raise DoesNotFit(f"{settings.gpu_experts} experts on the GPU", f"there is room for {there}", remedy)
    return gpu


def memory_use(
    machine: Machine, limits: dict[str, int], tensors: Sequence[Placed], others: dict[str, list[int]]
) -> tuple[MemoryUse, ...]:
    """`limits`: bytes that may be used, where it is not all; `others`: KV and buffer bytes."""
    weights: dict[str, int] = {}
    for one in tensors:
        weights[one.place] = weights.get(one.place, 0) + one.bytes
    found = []
    for memory in machine.memories:
        kv, buffers = others.get(memory.name, [0, 0])
        size = limits.get(memory.name, memory.bytes)
        found.append(MemoryUse(memory.name, size, weights.get(memory.name, 0), kv, buffers))
    return tuple(found)


def predicted(model: Model, machine: Machine, settings: Settings, arrangement: Arrangement) -> Plan:
    assert settings.context is not None and settings.threads is not None, "settings are resolved first"
    speed = Predictor(model, machine, settings, arrangement.tensors, arrangement.mode == "resident")
    depths = sorted({depth for depth in (*DEPTHS, settings.context - 1) if depth < settings.context})
    prompts = sorted({tokens for tokens in (*PROMPTS, settings.context) if tokens <= settings.context})
    decode = tuple(speed.decode(depth) for depth in depths)
    return Plan(
        model=model.name,
        machine=machine.name,
        settings=settings,
        mode=arrangement.mode,
        threads=settings.threads,
        fits=True,
        model_bytes=model.nbytes,
        memories=arrangement.memories,
        decode_ceiling_tokens_per_second=decode[0].ceiling_tokens_per_second,
        decode=decode,
        prefill=tuple(speed.prefill(tokens) for tokens in prompts),
        tensors=arrangement.tensors,
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
