"""What surrounds the process: limits, GPU, the directory of compiled kernels and its disk, versions, variables."""

import os
import platform
import resource
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hetero.sizes import format_size
from hetero.system import ROOT, Finding, judged, read

LITTLE_DISK = 1 << 30
REQUIRED = ("numpy", "numba", "llvmlite", "gguf", "psutil", "tokenizers", "jinja2", "rich", "typer", "prompt_toolkit")
OPTIONAL = ("torch", "triton", "llama-cpp-python")
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.sshfs"}
_MEMORY_FILES = {"tmpfs", "ramfs"}
# Variables of numba that change nothing here: no kernel uses its threads, and the cache directory is our own.
_HARMLESS = {"NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY", "NUMBA_CACHE_DIR"}
_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
Version = Callable[[str], str]


def limits(root: Path = ROOT, limit: Callable[[int], tuple[int, int]] = resource.getrlimit) -> Finding:
    """Nothing is locked in memory, so RLIMIT_MEMLOCK does not matter."""
    troubles = []
    space = limit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        what = f"address space is limited to {format_size(space)}: larger models cannot be mapped"
        troubles.append((what, "ulimit -v unlimited"))
    if read(root / "proc/sys/vm/overcommit_memory") == "2":
        what = "the kernel promises no more memory than it has (vm.overcommit_memory = 2)"
        troubles.append((what, "sysctl vm.overcommit_memory=0 (as root), if memory is refused though it is free"))
    return judged("limits", "" if troubles else "none on address space", *troubles)


def gpu(root: Path = ROOT, version: Version = version) -> Finding:
    """That there is one, from its driver's files: nothing of it is used."""
    lines = [read(path) for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))]
    names = [line.partition(":")[2].strip() for text in lines for line in text.splitlines() if line[:6] == "Model:"]
    driver = next((word for word in read(root / "proc/driver/nvidia/version").split() if word[:1].isdigit()), "")
    found = ", ".join(names) + f", driver {driver or 'unknown'}" if names else "none with an NVIDIA driver"
    if (root / "dev/kfd").exists():
        found += "; an AMD GPU"
    packages = "; ".join(f"{package} {_version(package, version) or 'not there'}" for package in ("torch", "triton"))
    return Finding("GPU", "ok", f"{found}; {packages}")


def _version(package: str, version: Version) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions(version: Version = version) -> Finding:
    there = {package: _version(package, version) for package in (*REQUIRED, *OPTIONAL)}
    found = ", ".join(f"{package} {number}" for package, number in there.items() if number)
    missing = [package for package in REQUIRED if there[package] is None]
    found = f"python {platform.python_version()}, {found}"
    if missing:
        return Finding(
            "versions", "broken", f"{found}; missing: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        )
    return Finding("versions", "ok", found)


def _cache(directory: Path | None) -> Path:
    if directory is not None:
        return directory
    from cpu_kernels.jit import CACHE_DIRECTORY

    return CACHE_DIRECTORY


def cache_directory(directory: Path | None = None, environ: Mapping[str, str] = os.environ) -> Finding:
    """Where compiled kernels are kept: whoever may write there decides what runs."""
    path = _cache(directory)
    base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hetero"
    found, troubles = f"{path} ({format_size(_size(path))})", []
    if path.parent != base:
        what = f"{base} cannot be used: kernels are compiled again at each start"
        troubles.append((what, f"make {base} a directory of yours, or set XDG_CACHE_HOME to one"))
        base = path
    for place in dict.fromkeys((base, path)):
        status = place.stat()
        if status.st_uid != os.geteuid():
            what = f"{place} belongs to user {status.st_uid}, this is user {os.geteuid()}"
            troubles.append((what, "chown it, or set XDG_CACHE_HOME to a directory of yours"))
        if stat.S_IMODE(status.st_mode) & 0o022:
            what = f"{place} has mode {stat.S_IMODE(status.st_mode):04o}: others may write there"
            troubles.append((what, f"chmod 700 {place}"))
    return judged("kernel cache", found, *troubles)


def _size(path: Path) -> int:
    size = 0
    for file in path.rglob("*"):
        with suppress(OSError):  # another process writes here, and renames what it wrote
            size += file.lstat().st_size
    return size


def disk(
    directory: Path | None = None, root: Path = ROOT, usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage
) -> Finding:
    """Of the cache directory."""
    path = _cache(directory)
    free, kind = usage(path)[2], file_system(path, root)
    troubles = []
    if free < LITTLE_DISK:
        troubles.append(("little is free for compiled kernels", "make room, or set XDG_CACHE_HOME to another disk"))
    if kind in _NETWORK:
        troubles.append(("a network file system: slow to start from", "set XDG_CACHE_HOME to a local disk"))
    if kind in _MEMORY_FILES:
        what = "it lies in memory: kernels are compiled again after a restart"
        troubles.append((what, "set XDG_CACHE_HOME to a disk"))
    return judged("disk", f"{format_size(free)} free on {kind or 'an unknown file system'} under {path}", *troubles)


def file_system(path: Path, root: Path = ROOT) -> str:
    """Its type, as ext4; "" where the system does not say."""
    best, kind = -1, ""
    for line in read(root / "proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        point = Path(mount.split()[4].replace("\\040", " "))
        if path.resolve().is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), source.split()[0]
    return kind


def variables(environ: Mapping[str, str] = os.environ) -> Finding:
    """Those that change what the kernels are, or where threads run."""
    if environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return Finding("variables", "broken", "NUMBA_DISABLE_JIT is set: no kernel can run", "unset NUMBA_DISABLE_JIT")
    troubles = []
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        if name in environ:
            what = f"{name}={environ[name]}: kernels are compiled for that, not for this CPU"
            troubles.append((what, f"unset {name}, unless it is a remedy"))
    known = {"NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_DISABLE_JIT"} | _HARMLESS
    for name in sorted(name for name in environ if name.startswith("NUMBA_") and name not in known):
        troubles.append((f"{name}={environ[name]} changes how kernels are compiled", f"unset {name}"))
    for name in _BINDING:
        if environ.get(name, "").lower() not in ("", "0", "false", "disabled", "none"):
            what = f"{name}={environ[name]} may bind our first thread to one CPU once a library with OpenMP is loaded"
            troubles.append((what, f"unset {name}"))
    if environ.get("LD_PRELOAD"):
        troubles.append((f"LD_PRELOAD={environ['LD_PRELOAD']}; nothing here needs it", "unset LD_PRELOAD"))
    return judged("variables", "" if troubles else "none that changes kernels or threads", *troubles)


ENVIRONMENT = (limits, gpu, cache_directory, disk, versions, variables)
