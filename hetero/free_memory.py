"""How much memory this process may still fill before the kernel swaps, or kills it."""

from pathlib import Path

import psutil

_PROC, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Version 2, then 1: the limit, what is used, and the line of memory.stat with pages of files, which make room
_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
_CACHED = ("active_file", "inactive_file"), ("total_active_file", "total_inactive_file")


def free_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes: what the machine has, within the limits of the process's cgroup (version 1 or 2) and its ancestors."""
    free = psutil.virtual_memory().available
    for line in _read(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, group = cgroups / "memory" if controllers else cgroups, Path(path.lstrip("/"))
        for level in [group, *group.parents]:
            free = min(free, _free_in(root / level, free))
    return free


def _free_in(group: Path, free: int) -> int:
    for (limit_name, used_name), names in zip(_FILES, _CACHED, strict=True):
        limit, used = _read(group / limit_name), _read(group / used_name)
        if limit.isdigit() and used.isdigit():
            stat = dict(line.split()[:2] for line in _read(group / "memory.stat").splitlines() if " " in line)
            return max(0, int(limit) - int(used) + sum(int(stat.get(name, 0)) for name in names))
    return free


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
