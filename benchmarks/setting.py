"""What a benchmark's figures belong to: the machine, the versions, the commit, the day."""

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
PACKAGES = ("numpy", "numba", "llvmlite", "llama-cpp-python")


def machine() -> dict[str, object]:
    with open("/proc/cpuinfo") as info:
        name = next(
            (line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine()
        )
    return {
        "cpu": name,
        "cores": psutil.cpu_count(logical=False),
        "threads": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}}


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip()


def setting() -> dict[str, object]:
    return {"machine": machine(), "versions": versions(), "commit": commit(), "date": date.today().isoformat()}
