"""Which CPUs this process may use: affinity mask, physical cores, cgroup quota; all read from sysfs and procfs."""

import math
import os
from pathlib import Path

_SYSFS, _PROC, _CGROUPS = Path("/sys/devices/system/cpu"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def physical_cpus(allowed: set[int] | None = None, sysfs: Path = _SYSFS) -> list[int]:
    """One CPU for each physical core, then the remaining hyperthreads; without sysfs every CPU counts as a core."""
    cpus = sorted(os.sched_getaffinity(0) if allowed is None else allowed)
    return _split_siblings(cpus, sysfs)[0]


def _split_siblings(cpus: list[int], sysfs: Path) -> tuple[list[int], list[int]]:
    first: list[int] = []
    rest: list[int] = []
    seen = set()
    for cpu in cpus:
        siblings = _read(sysfs / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        (rest if siblings in seen else first).append(cpu)
        seen.add(siblings)
    return first, rest


def pin_order(allowed: set[int] | None = None, sysfs: Path = _SYSFS) -> list[int]:
    """Where threads 0, 1, 2 ... go: every core once, then the second hyperthreads."""
    first, rest = _split_siblings(sorted(os.sched_getaffinity(0) if allowed is None else allowed), sysfs)
    return first + rest


def cpu_quota(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> float:
    """CPUs that the cgroup (version 1 or 2, any ancestor) grants; inf without a limit."""
    limit = math.inf
    for line in _read(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        root = cgroups if not controllers else cgroups / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for level in [group, *group.parents]:
            limit = min(limit, _group_quota(root / level))
    return limit


def _group_quota(group: Path) -> float:
    quota, period = [*_read(group / "cpu.max").split(), "", ""][:2]
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or not int(period):
        return math.inf
    return int(quota) / int(period)


def default_threads() -> int:
    """One thread for each physical core we may run on, no more than the quota pays for."""
    return max(1, int(min(len(physical_cpus()), cpu_quota())))
