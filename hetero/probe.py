"""What this machine is, and how fast its memory can be read."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from cpu_kernels import Pool

READ_SECONDS = 0.3


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            names = (line.partition(":")[2].strip() for line in info if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.machine()


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
