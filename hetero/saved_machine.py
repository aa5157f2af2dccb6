"""What was measured of this machine, kept in a file of the user's cache directory until the hardware, the number of
threads or the kernels change. Reading it imports no kernels.
"""

import hashlib
import json
import os
import platform
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from placement import Machine, PlacementError
from placement.document import Document

VERSION = 1  # of the file, and of how rates are measured
MOST_BYTES = 16 << 20
_NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Saved(Document):
    """`machine`: with all of its memory, also what is not free. `disks`: bytes/s by file system."""

    machine: Machine
    disks: tuple[tuple[str, float], ...] = ()


def directory() -> Path:
    """OSError, RuntimeError: there is none."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hetero"


def fingerprint(threads: int) -> dict[str, Any]:
    """What rates depend on."""
    from cpu_kernels.topology import nodes

    return {
        "version": VERSION,
        "cpu": cpu_name(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "threads": threads,
        "nodes": [[list(node.cpus), node.memory_bytes] for node in nodes()],
        "gpus": _gpus(),
        "kernels": _kernels(),
        "numba": [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")],
    }


def _gpus() -> list[str]:
    """As the driver names them; of NVIDIA only."""
    found = []
    with suppress(OSError):
        for path in sorted(_NVIDIA.glob("*/information")):
            found += [line for line in path.read_text().splitlines() if line.startswith(("Model:", "GPU UUID:"))]
    return found


def _kernels() -> str:
    """A digest of the kernels' sources."""
    digest, spec = hashlib.sha256(), find_spec("cpu_kernels")
    assert spec is not None and spec.submodule_search_locations, "cpu_kernels is a package beside this one"
    home = Path(next(iter(spec.submodule_search_locations)))
    for source in sorted(home.rglob("*.py")):
        digest.update(f"{source.relative_to(home)}\0".encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def path_for(key: dict[str, Any]) -> Path:
    text = json.dumps(key, sort_keys=True)
    return directory() / f"machine-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


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
        return Saved.from_json(document)
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


def saved_machine(threads: int | None = None) -> Machine | None:
    """This machine as hetero.probe measured it last, with all of its memory; None where it did not."""
    from cpu_kernels.topology import default_threads

    saved = read(fingerprint(threads or default_threads()))
    return None if saved is None else saved.machine
