"""A CUDA GPU's memory, arithmetic and links, measured with torch, where there are both."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from hetero.stopwatch import Stopwatch
from placement.known_parts import Gpu, gpu_processor
from placement.machine import GPU, Link, Memory, Processor

COPIED_BYTES, SMALLEST_BYTES = 256 << 20, 4
MATRIX = 4096


def installed_torch() -> Any | None:
    try:
        torch = import_module("torch")
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def measure_gpu(stopwatch: Stopwatch, torch: Any) -> tuple[Memory, Link, Processor]:
    """The first GPU, with all of its memory: what is free changes, and a plan takes off what a CUDA context needs.
    Its quantized kernels are not written yet: their rates are shares of what is measured here."""
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
