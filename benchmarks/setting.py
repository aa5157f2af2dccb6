"""What a benchmark's figures belong to: the machine, the versions, the commit, the day."""

import subprocess
from datetime import date
from pathlib import Path

from hetero.probe import machine, versions

ROOT = Path(__file__).parent.parent


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip()


def setting() -> dict[str, object]:
    return {
        "machine": machine(),
        "versions": versions("numpy", "numba", "llvmlite", "llama-cpp-python"),
        "commit": commit(),
        "date": date.today().isoformat(),
    }
