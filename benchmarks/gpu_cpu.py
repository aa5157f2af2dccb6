"""The CPU's kernels on the same machine: what it reads, and its products of one column and of many."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu_cases import Case
from benchmarks.gpu_setup import Setup, figure
from cpu_kernels.machine import MACHINE
from hetero.kernel_rates import LEAST_ROTATED, ROTATED_BYTES, KernelRates, Verb
from hetero.probe import read_bandwidth
from hetero.stopwatch import Stopwatch

PRODUCTS: tuple[tuple[Verb, str], ...] = (
    ("linear", "Q4_K"),
    ("linear", "Q6_K"),
    ("linear", "Q8_0"),
    ("experts", "Q4_K"),
    ("experts", "Q6_K"),
)


def cases(setup: Setup) -> dict[str, Case]:
    found: dict[str, Case] = {"read": partial(read, setup)}
    return found | {f"{verb} {type}": partial(products, setup, verb, type) for verb, type in PRODUCTS}


def read(setup: Setup) -> Iterator[dict[str, Any]]:
    name = f"{setup.pool.threads} threads, {MACHINE.__name__}"
    setup.limits["DRAM read"] = read_bandwidth(setup.pool)
    yield figure(name, setup.limits["DRAM read"], "B/s", nodes=len(setup.pool.nodes))


def products(setup: Setup, verb: Verb, type: str) -> Iterator[dict[str, Any]]:
    stopwatch = Stopwatch(0.0, 1) if setup.plain else Stopwatch(0.05)
    most = setup.size(256, 2)
    rates = KernelRates(setup.pool, stopwatch, most, setup.size(ROTATED_BYTES, LEAST_ROTATED)).rate(verb, type)
    flops = dict(rates.flops_at)
    read = flops[1] / 2 * rates.bytes_per_weight
    whole = setup.limits.get("DRAM read")
    yield figure("1 column", read, "B/s", bound_by="DRAM read" if whole else "", share=read / whole if whole else None)
    yield figure(f"{max(flops)} columns", flops[max(flops)], "FLOP/s", call_seconds=rates.call_seconds, flops_at=flops)
