"""What was measured of this machine, kept in a file of the user's cache directory until the hardware, the number of
threads, the kernels or how they are measured change. Reading it imports no kernels.
"""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from placement import Machine, Memory, PlacementError
from placement.document import Document
from placement.known_parts import DISK_BANDWIDTH
from placement.machine import DISK

# Besides kernels, what rates are made by: modules beside this one; of a GPU some are shares, of placement.known_parts
MEASURING = (
    "cpu_rates",
    "disk_rate",
    "gpu_kernel_rates",
    "gpu_rates",
    "kernel_rates",
    "probe",
    "random_weights",
    "stopwatch",
    "verb_rates",
)
PACKAGES = ("numba", "llvmlite", "torch")
VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "CUDA_VISIBLE_DEVICES")
MOST_BYTES = 16 << 20
SPEEDS = 1.0, 1e18  # bytes/s and FLOP/s that a machine may have
MOST_SECONDS = 60.0  # of one call
_NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Saved(Document):
    """`machine`: with all of its memory, also what is not free. `disks`: bytes/s by file system."""

    machine: Machine
    disks: tuple[tuple[str, float], ...] = ()

    @property
    def plausible(self) -> bool:
        """Some machine may have such rates: none of them 0, which predictions divide by. Disks are kept apart."""
        low, high = SPEEDS
        fast = all(low <= speed <= high for speed in self._speeds())
        short = all(seconds <= MOST_SECONDS for seconds in self._seconds())
        threads = all(processor.threads for processor in self.machine.processors)
        return fast and short and threads and all(memory.name != DISK for memory in self.machine.memories)

    def _speeds(self) -> Iterator[float]:
        machine = self.machine
        yield machine.dram_bandwidth
        yield from (memory.read_bandwidth for memory in machine.memories if memory.kind != "dram")
        yield from (speed for _, speed in self.disks)
        for link in machine.links:
            yield from (link.to_gpu_pinned, link.to_gpu_pageable, link.from_gpu_pinned, link.from_gpu_pageable)
        for processor in machine.processors:
            yield from (flops for rate in processor.linear for _, flops in rate.flops_at)
            for rate in processor.attention:
                yield from (rate.decode, rate.absorbed, rate.expanded)

    def _seconds(self) -> Iterator[float]:
        yield from (link.latency for link in self.machine.links)
        for processor in self.machine.processors:
            yield from (rate.call_seconds for rate in processor.linear)
            yield from (seconds for rate in processor.verbs for seconds in (rate.call_seconds, rate.value_seconds))
            for rate in processor.attention:
                yield from (rate.call_seconds, rate.row_seconds, rate.value_seconds)


def directory() -> Path:
    """OSError, RuntimeError: there is none."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hetero"


def fingerprint(threads: int) -> dict[str, Any]:
    """What rates depend on."""
    from cpu_kernels.topology import nodes

    return {
        "cpu": cpu_name(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "threads": threads,
        "nodes": [[list(node.cpus), node.memory_bytes] for node in nodes()],
        "gpus": _gpus(),
        "sources": digest(sources()),
        "packages": [_version(package) for package in PACKAGES],
        "environment": [os.environ.get(name, "") for name in VARIABLES],
    }


def _gpus() -> list[str]:
    """As the driver names them; of NVIDIA only."""
    found = []
    with suppress(OSError):
        for path in sorted(_NVIDIA.glob("*/information")):
            found += [line for line in path.read_text().splitlines() if line.startswith(("Model:", "GPU UUID:"))]
    return found


def sources() -> list[Path]:
    """Of the kernels, and of what measures them."""
    here = Path(__file__)
    measuring = [here.with_name(f"{name}.py") for name in MEASURING]
    return [*_package("cpu_kernels").rglob("*.py"), *measuring, _package("placement") / "known_parts.py"]


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.submodule_search_locations, f"{name} is a package beside this one"
    return Path(next(iter(spec.submodule_search_locations)))


def digest(files: Iterable[Path]) -> str:
    """Of what they hold, wherever they are."""
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(f"{file.parent.name}/{file.name}\0".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def _version(package: str) -> str:
    """As it is installed, without importing it: a GPU counts from the day on which there is a torch to measure it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def path_for(key: dict[str, Any]) -> Path:
    text = json.dumps(key, sort_keys=True)
    return directory() / f"machine-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def file_system(path: str | Path) -> str:
    """Name of the one that holds `path`, as `Saved.disks` has it."""
    return f"{os.stat(path).st_dev:x}"


def with_disk(machine: Machine, path: str | Path, disks: Mapping[str, float]) -> Machine:
    """With the disk under `path`, and a note where its rate is not among `disks`."""
    rate, notes = disks.get(file_system(path)), machine.notes
    status = os.statvfs(path)
    if rate is None:
        notes = (*notes, f"the disk was not measured: {DISK_BANDWIDTH / 1e9:g} GB/s are assumed")
    # all of it: the model's file is there already
    disk = Memory(DISK, "disk", status.f_frsize * status.f_blocks, rate or DISK_BANDWIDTH)
    return replace(machine, memories=(*machine.memories, disk), notes=notes)


def read(key: dict[str, Any]) -> Saved | None:
    """What was saved under this fingerprint; None where nothing was, or nothing that can be used."""
    try:
        descriptor = os.open(path_for(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(descriptor).st_uid != os.geteuid():
                return None
            document = json.loads(file.read(MOST_BYTES))
        if not isinstance(document, dict) or document.pop("fingerprint", None) != key:
            return None
        saved = Saved.from_json(document)
        return saved if saved.plausible else None
    except (OSError, RuntimeError, ValueError, RecursionError, PlacementError):
        return None


def write(key: dict[str, Any], saved: Saved) -> str:
    """Under its name only when it is complete. Why it could not be written; "" where it was."""
    try:
        path = path_for(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # of mode 0600
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"fingerprint": key} | saved.to_json(), file)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except (OSError, RuntimeError) as error:
        return f"rates could not be saved: {getattr(error, 'strerror', None) or error}"
    return ""


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            names = (line.partition(":")[2].strip() for line in info if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.machine()
