"""What this machine is, and how fast: memory, disk, and the project's kernels on it."""

import os
import platform
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from hetero.free_memory import free_memory
from hetero.planning import with_free_memory
from hetero.saved_machine import Saved, cpu_name, file_system, fingerprint, read, with_disk, write
from hetero.stopwatch import Stopwatch
from placement.machine import Machine, Memory, Processor
from placement.model import Model, Part

if TYPE_CHECKING:
    from cpu_kernels import Pool
    from hetero.verb_rates import KV

READ_SECONDS = 0.3
_SHARES = "rates of quantized products and attention are shares of its bf16 rate"


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }


def versions(*packages: str) -> dict[str, str | None]:
    """Of Python and of what is installed; None: it is not."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def read_bandwidth(pool: "Pool") -> float:
    """Bytes per second that the pool's threads together read from memory."""
    from cpu_kernels import bandwidth  # here: importing it compiles its kernels

    return bandwidth.read_bandwidth(pool, READ_SECONDS)


def resident_bytes(peak: bool = True) -> int:
    """Of this process: the most so far, or now. Pages of a mapped file count once they were touched."""
    name = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(name))


def weight_types(model: Model) -> set[str]:
    """Types of the matrices that are multiplied with."""
    unread: set[Part] = {"norms", "nextn", "other"} if model.tied else {"embedding", "norms", "nextn", "other"}
    parts = (tensors for part, tensors in model.by_part.items() if part not in unread)
    return {tensor.type for tensors in parts for tensor in tensors if len(tensor.shape) > 1}


def probe(
    pool: "Pool | int | None" = None,
    types: Iterable[str] = (),
    *,
    kv: "Iterable[KV]" = ("f16",),
    path: str | Path | None = None,
    refresh: bool = False,
    stopwatch: Stopwatch | None = None,
) -> Machine:
    """This machine, with rates for weights and caches of these types. What was measured before is taken from a file in
    the user's cache directory, unless `refresh`: then everything is measured anew.

    `pool`: or a number of threads, None for the default. `path`: a file whose disk is read. A type takes about 3 s, the
    rest 2 s. The memory of the machine that is returned is what is free now.
    """
    from cpu_kernels import Pool

    if not isinstance(pool, Pool):
        with Pool(pool) as made:
            return probe(made, types, kv=kv, path=path, refresh=refresh, stopwatch=stopwatch)
    stopwatch, key = stopwatch or Stopwatch(), fingerprint(pool.threads)
    before = None if refresh else read(key)
    found = _measured(pool, types, kv, stopwatch, before.machine if before else None)
    disks = dict(before.disks) if before else {}
    if path is not None and file_system(path) not in disks:
        from hetero.disk_rate import disk_rate

        rate = disk_rate(Path(path), stopwatch.clock)
        disks |= {file_system(path): rate} if rate else {}
    saved = Saved(found, tuple(disks.items()))
    problem = write(key, saved) if saved != before else ""
    machine = with_disk(with_free_memory(found, free_memory()), path or ".", disks)
    return replace(machine, notes=(*machine.notes, problem)) if problem else machine


def _measured(
    pool: "Pool", types: Iterable[str], kv: "Iterable[KV]", stopwatch: Stopwatch, before: Machine | None
) -> Machine:
    """With all of its memory, without disks."""
    from hetero.cpu_rates import measure_cpu, rates_for

    types, kv = tuple(types), tuple(kv)
    cpu = measure_cpu(pool, stopwatch, cpu_name(), rates_for(types), kv, before.cpu if before else None)
    if before is not None:
        others = () if before.gpu is None else (_with_kernels(before.gpu, pool, types, kv, stopwatch),)
        notes = [note for note in before.notes if not note.endswith(_SHARES)]
        notes += [note for other in others for note in _notes(other)]
        return Machine(before.name, True, before.memories, before.links, (cpu, *others), tuple(sorted(notes)))
    nodes, notes = _nodes(pool), list(pool.notes)
    name = f"{cpu.description}, {pool.threads} threads"
    if len(nodes) > 1:
        notes.append("rates of products are those of weights spread over the nodes page by page")
    gpu = _gpu(stopwatch)
    if gpu is None:
        return Machine(name, True, nodes, (), (cpu,), tuple(sorted(notes)))
    vram, link, processor = gpu
    processor = _with_kernels(processor, pool, types, kv, stopwatch)
    notes += _notes(processor)
    name += f", {processor.description}"
    return Machine(name, True, (vram, *nodes), (link,), (cpu, processor), tuple(sorted(notes)))


def _with_kernels(
    processor: Processor, pool: "Pool", types: Iterable[str], kv: "Iterable[KV]", stopwatch: Stopwatch
) -> Processor:
    """A GPU's rates as its kernels reach them; as they are where those cannot run."""
    from hetero.gpu_rates import kernel_rates, with_kernels

    rates = kernel_rates(pool, stopwatch)
    return processor if rates is None else with_kernels(processor, rates, types, kv)


def _notes(gpu: Processor) -> list[str]:
    from hetero.gpu_rates import kernels_measured

    return [] if kernels_measured(gpu) else [f"{gpu.description}: {_SHARES}"]


def _nodes(pool: "Pool") -> tuple[Memory, ...]:
    """All are read at once, each by its own threads; a node's share of the bandwidth is that of its threads."""
    bandwidth, found = read_bandwidth(pool), []
    for i, node in enumerate(pool.nodes):
        share = pool.node_of_thread.count(i) / pool.threads
        size = node.memory_bytes or psutil.virtual_memory().total // len(pool.nodes)
        found.append(Memory(f"node{node.id}", "dram", size, bandwidth * share))
    return tuple(found)


def _gpu(stopwatch: Stopwatch) -> Any:
    from hetero.gpu_rates import installed_torch, measure_gpu

    torch = installed_torch()
    return None if torch is None else measure_gpu(stopwatch, torch)
