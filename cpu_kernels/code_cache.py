"""The directory where numba keeps the machine code of the kernels, and the removal of those that nobody uses any more.

numba's own cache does not notice an edit in another file and does not know the CPU, so the directory's name is a hash
of this package's sources, the CPU's name and feature flags, whether tile registers may be used, and the versions of
numba and llvmlite; and of where and how old the sources are, because numba compiles again when those change. So every
other version leaves a directory behind. One is removed when no process has started with it for 30 days; a process holds
a lock on its own.
"""

import atexit
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numba

from .cpu import TILES

UNUSED_SECONDS = 30 * 24 * 3600
_NAME = re.compile(r"kernels-[0-9a-f]{16}")
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS, _PAUSE = 100, 0.02  # to hold a directory that another process is removing; seconds


def directory() -> Path:
    """Of mode 0700 under $XDG_CACHE_HOME/hetero, one for each (sources, CPU, numba) combination; older ones go."""
    name = f"kernels-{_key()}"
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hetero"
        base.mkdir(parents=True, exist_ok=True)
        hold(base / name)  # until the process ends
    except (OSError, RuntimeError):  # a read-only home, somebody else's directory, no home: for this process alone
        path = Path(tempfile.mkdtemp(prefix="hetero-kernels-"))
        atexit.register(shutil.rmtree, path, ignore_errors=True)
        return path
    prune(base)
    return base / name


def _key() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).resolve().parent.rglob("*.py")):
        digest.update(f"{source} {source.stat().st_mtime_ns} ".encode() + source.read_bytes())
    cpu = (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    overrides = (os.environ.get("NUMBA_CPU_NAME", ""), os.environ.get("NUMBA_CPU_FEATURES", ""))
    digest.update(repr((cpu, overrides, TILES, numba.__version__, llvmlite.__version__)).encode())
    return digest.hexdigest()[:16]


def hold(path: Path) -> int:
    """Makes the directory if need be, notes that it is used now, and locks it as long as the descriptor is open.

    OSError where it is a link or somebody else's: the machine code in it will be run.
    """
    for _ in range(_ATTEMPTS):
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        try:
            descriptor = os.open(path, _OPEN)
        except FileNotFoundError:  # removed meanwhile
            continue
        if os.fstat(descriptor).st_uid != os.geteuid():
            os.close(descriptor)
            raise PermissionError(f"{path} belongs to another user")
        os.fchmod(descriptor, 0o700)
        os.utime(descriptor)
        if _share(descriptor) and _names(path, descriptor):
            return descriptor
        os.close(descriptor)  # another process is removing it, or has done so
        time.sleep(_PAUSE)
    raise TimeoutError(f"{path} is locked")


def _share(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where nothing is ever removed
        return True
    return True


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def prune(base: Path) -> None:
    """Removes the directories of kernels that have not been used for long. What goes wrong is left as it is."""
    with suppress(OSError):
        root = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in filter(_NAME.fullmatch, os.listdir(root)):
                with suppress(OSError):
                    _remove(root, name)
        finally:
            os.close(root)


def _remove(root: int, name: str) -> None:
    """Entry `name` of the directory `root`, if it is ours, unused, and nobody holds it."""
    descriptor = os.open(name, _OPEN, dir_fd=root)
    try:
        if _unused(descriptor):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _unused(descriptor):  # still: a process may have started with it
                shutil.rmtree(name, dir_fd=root)  # follows no links
    finally:
        os.close(descriptor)


def _unused(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    ours = status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == 0o700
    return ours and status.st_mtime < time.time() - UNUSED_SECONDS
