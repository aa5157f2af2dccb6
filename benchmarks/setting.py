"""What a benchmark's figures belong to: the machine, the versions, the commit, the day."""

import subprocess
from contextlib import suppress
from datetime import date
from pathlib import Path

from cpu_kernels.machine import MACHINE
from hetero.probe import machine, versions

ROOT = Path(__file__).parent.parent


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip()


def instruction_sets() -> dict[str, str]:
    """What the kernels here are emitted for, and what llama.cpp's were compiled for."""
    sets = {"hetero": MACHINE.__name__}
    with suppress(ImportError):
        from llama_cpp import llama_print_system_info

        sets["llama.cpp"] = llama_print_system_info().decode().strip(" |")
    return sets


def setting() -> dict[str, object]:
    return {
        "machine": machine(),
        "instruction_sets": instruction_sets(),
        "versions": versions("numpy", "numba", "llvmlite", "llama-cpp-python"),
        "commit": commit(),
        "date": date.today().isoformat(),
    }
