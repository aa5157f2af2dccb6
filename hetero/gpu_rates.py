"""A CUDA GPU's memory, arithmetic and links, measured with torch, where there are both."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hetero.cpu_rates import rates_for
from hetero.stopwatch import Stopwatch
from placement.known_parts import Gpu, gpu_processor
from placement.machine import GPU, Link, Memory, Processor

if TYPE_CHECKING:
    from cpu_kernels import Pool
    from hetero.gpu_kernel_rates import GpuKernelRates

COPIED_BYTES, SMALLEST_BYTES = 256 << 20, 4
MATRIX = 4096
LEAST_ROTATED, L2_CACHES = 64 << 20, 4  # bytes of weights that are read in turn, also as a multiple of the L2 cache


def installed_torch() -> Any | None:
    try:
        torch = import_module("torch")
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def measure_gpu(stopwatch: Stopwatch, torch: Any) -> tuple[Memory, Link, Processor]:
    """The first GPU, with all of its memory: what is free changes, and a plan takes off what a CUDA context needs.
    Rates of its kernels are shares of what is measured here, until `with_kernels` has timed them."""
    properties = torch.cuda.get_device_properties(0)
    _, size = torch.cuda.mem_get_info(0)

    def seconds(call: Callable[[], object]) -> float:
        def finished() -> None:
            call()
            torch.cuda.synchronize()

        return stopwatch.time(finished)

    def buffer(nbytes: int, device: str, pinned: bool = False) -> Any:
        return torch.empty(nbytes, dtype=torch.uint8, device=device, pin_memory=pinned)

    def copied(target: Any, source: Any) -> float:
        """Bytes per second."""
        return COPIED_BYTES / seconds(lambda: target.copy_(source, non_blocking=True))

    there, other = (buffer(COPIED_BYTES, "cuda") for _ in range(2))
    bandwidth = 2 * copied(there, other)  # each byte is read and written
    pinned, pageable = buffer(COPIED_BYTES, "cpu", True), buffer(COPIED_BYTES, "cpu").zero_()
    small, small_there = buffer(SMALLEST_BYTES, "cpu", True), buffer(SMALLEST_BYTES, "cuda")
    latency = seconds(lambda: small_there.copy_(small, non_blocking=True))
    rates = (copied(there, pinned), copied(there, pageable), copied(pinned, there), copied(pageable, there))
    a = torch.ones((MATRIX, MATRIX), dtype=torch.bfloat16, device="cuda")
    flops = 2 * MATRIX**3 / seconds(lambda: torch.mm(a, a))
    part = Gpu(properties.name, size, bandwidth, flops, properties.multi_processor_count, 0)
    return Memory(GPU, "vram", size, bandwidth), Link(GPU, *rates, latency), gpu_processor(part, read=1.0)


def kernel_rates(pool: "Pool", stopwatch: Stopwatch) -> "GpuKernelRates | None":
    """What times the GPU's kernels; None where they cannot run, or where a model has taken the memory."""
    import torch

    import gpu_kernels
    from hetero.gpu_kernel_rates import GpuKernelRates

    try:
        device = gpu_kernels.Device.cuda()
    except gpu_kernels.GpuError:
        return None
    cached = L2_CACHES * torch.cuda.get_device_properties(0).L2_cache_size
    room = min(max(cached, LEAST_ROTATED), torch.cuda.mem_get_info(0)[0] // 8)
    return GpuKernelRates(device, gpu_kernels, pool, stopwatch, room) if room >= LEAST_ROTATED else None


def kernels_measured(processor: Processor) -> bool:
    """Whether its rates are those of kernels, not shares of what the GPU can do."""
    return any(rate.verb != "linear" for rate in processor.linear)


def with_kernels(processor: Processor, rates: "GpuKernelRates", types: Iterable[str], kv: Iterable[str]) -> Processor:
    """With rates for weights and caches of these types, of which those that were measured before are kept."""
    known = kernels_measured(processor)
    linear = {(rate.verb, rate.type): rate for rate in processor.linear} if known else {}
    attention = {rate.kv: rate for rate in processor.attention} if known else {}
    for verb, type in sorted(rates_for(types), key=lambda wanted: wanted[::-1]):
        if verb != "mapped" and (verb, type) not in linear:
            linear[verb, type] = rates.rate(verb, type)
    for cache in dict.fromkeys((*kv, *(() if attention else ("f16",)))):
        if cache in ("f16", "q8_0") and cache not in attention:
            attention[cache] = rates.attention(cache)
    verbs = processor.verbs if known else rates.small_verbs()
    return replace(processor, linear=tuple(linear.values()), attention=tuple(attention.values()), verbs=verbs)
