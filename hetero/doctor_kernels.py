"""The process in which `hetero doctor` runs kernels: it may die by a signal, and then the doctor starts another one.

`python -m hetero.doctor_kernels NAME...` runs these checks (without names: all), and `--compile` only compiles, so that
a second core helps. A line on stdout is a JSON document: first {"checks": names}, then {"begin": name} before a check
and its finding after it.
"""

import errno
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Literal, TextIO

from hetero.errors import HeteroError
from hetero.gpu_machine import gpu_is_there, gpu_problem
from hetero.system import Finding

UNLIKELY = "run `hetero doctor` again; if it stays so, please report this line and the one that begins with cpu"
ROOM = "make room for compiled kernels on the disk of the kernel cache, or set XDG_CACHE_HOME to another one"


def kernel_remedy() -> str:
    """What to do where compiled code does not work on this CPU."""
    if "NUMBA_CPU_NAME" in os.environ:
        other = "" if os.environ["NUMBA_CPU_NAME"] == "generic" else ", or set it to generic"
        return f"unset NUMBA_CPU_NAME{other}; if that does not help, please report it"
    lesser = "NUMBA_CPU_NAME=haswell, or " if platform.machine() == "x86_64" else ""
    return f"please report it; until then run with {lesser}NUMBA_CPU_NAME=generic"


def run_checks(names: list[str], out: TextIO) -> None:
    from hetero.gpu_checks import GPU_DEVICE, gpu_checks
    from hetero.kernel_checks import checks

    known = checks()
    if gpu_is_there():
        every = gpu_checks()
        known |= every if gpu_problem() is None else {GPU_DEVICE: every[GPU_DEVICE]}
    names = names or list(known)
    print(json.dumps({"checks": names}), file=out, flush=True)
    for name in names:
        print(json.dumps({"begin": name}), file=out, flush=True)
        print(json.dumps(asdict(run_check(name, known[name]))), file=out, flush=True)


def run_check(name: str, check: Callable[[], str]) -> Finding:
    from cpu_kernels.faults import WorkerFault
    from gpu_kernels import GpuError
    from hetero.gpu_checks import GPU_DEVICE
    from hetero.kernel_checks import WrongNumbers

    try:
        return Finding(name, "ok", check())
    except WrongNumbers as error:
        return Finding(name, "broken", str(error), kernel_remedy())
    except WorkerFault as error:
        return Finding(name, "broken", str(error), kernel_remedy())
    except GpuError as error:  # a GPU that cannot be used at all is left alone
        status: Literal["warning", "broken"] = "warning" if name == GPU_DEVICE else "broken"
        return Finding(name, status, f"{error.found}; {error.limit}", error.remedy or UNLIKELY)
    except HeteroError as error:
        return Finding(name, "broken", f"{error.found}; {error.limit}", error.remedy or UNLIKELY)
    except MemoryError as error:
        return Finding(name, "broken", f"out of memory: {error}", "close other programs")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        return Finding(name, "broken", f"{type(error).__name__}: {error}", ROOM if full else UNLIKELY)
    except Exception as error:
        return Finding(name, "broken", f"{type(error).__name__}: {error}", UNLIKELY)


def compile_formats() -> None:
    """All of them, those first that other checks use."""
    from cpu_kernels import SUPPORTED
    from cpu_kernels.matrix import load_format

    first = ("Q8_0", "Q4_K", "Q6_K", "F32")
    for type in (*first, *sorted(SUPPORTED - set(first))):
        load_format(type)


def main(arguments: list[str]) -> None:
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print
    if arguments == ["--compile"]:
        compile_formats()
    else:
        run_checks(arguments, out)


if __name__ == "__main__":
    main(sys.argv[1:])
