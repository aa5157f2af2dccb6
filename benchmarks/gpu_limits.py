"""What the device can do at best: reading its memory, multiplying, and both directions of its link."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu_cases import Case
from benchmarks.gpu_setup import Setup, figure

MATRIX = 8192
READ_BYTES, COPIED_BYTES = 4 << 30, 512 << 20


def cases(setup: Setup) -> dict[str, Case]:
    return {
        "device read": lambda: device_read(setup),
        "f16 rate": lambda: matrix_rate(setup, "f16 rate", torch.float16),
        "bf16 rate": lambda: matrix_rate(setup, "bf16 rate", torch.bfloat16),
        "link": lambda: link(setup),
    }


def device_read(setup: Setup) -> Iterator[dict[str, Any]]:
    """The better of a sum, which only reads, and a copy, which reads and writes as much."""
    count = setup.size(READ_BYTES // 4, 1 << 12)
    x = setup.normal(count)
    half, other = x[: count // 2], torch.empty_like(x[: count // 2])
    seconds = setup.timer.medians({"sum": [lambda: x.sum()], "copy": [lambda: other.copy_(half)]})
    rates = {name: 4 * count / spent for name, spent in seconds.items()}
    yield figure("device read", max(rates.values()), "B/s", by_way=rates)


def matrix_rate(setup: Setup, name: str, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    size = setup.size(MATRIX, 32)
    a, b = setup.normal(size, size).to(dtype), setup.normal(size, size).to(dtype)
    seconds = setup.timer.medians({name: [lambda: torch.mm(a, b)]})[name]
    yield figure(name, 2 * size**3 / seconds, "FLOP/s")


def link(setup: Setup) -> Iterator[dict[str, Any]]:
    count = setup.size(COPIED_BYTES, 1 << 12)
    there = torch.empty(count, dtype=torch.uint8, device=setup.place)
    pinned = torch.zeros(count, dtype=torch.uint8, pin_memory=not setup.plain)
    ways = {
        "to the GPU, pinned": [lambda: there.copy_(pinned, non_blocking=True)],
        "from the GPU, pinned": [lambda: pinned.copy_(there, non_blocking=True)],
    }
    for name, seconds in setup.timer.medians(ways, eager=True).items():
        yield figure(name, count / seconds, "B/s")
