"""Which CPUs and NUMA nodes this process may use, and where a pool's threads go: from sysfs, procfs and the mask.

The kernel keeps a cpuset in the affinity mask; a quota is not in it and is read from the cgroups.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

_CPUS, _NODES = Path("/sys/devices/system/cpu"), Path("/sys/devices/system/node")
_PROC, _CGROUPS, _MEMINFO = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"), Path("/proc/meminfo")


class TooManyThreads(ValueError):
    """More threads were asked for than can run: `found`, `limit`, `remedy`."""

    def __init__(self, found: str, limit: str, remedy: str):
        self.found, self.limit, self.remedy = found, limit, remedy
        super().__init__(f"{found}; {limit}; {remedy}")


@dataclass(frozen=True)
class Node:
    """A NUMA node: the CPUs of it that this process may use; distances to all nodes, 10 to itself, () where unknown."""

    id: int
    cpus: tuple[int, ...]
    memory_bytes: int
    distances: tuple[int, ...] = ()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def parse_cpus(text: str) -> set[int]:
    """The kernel's form of a set: "0-3,8" """
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


def format_cpus(cpus: set[int] | tuple[int, ...]) -> str:
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _allowed(allowed: set[int] | None) -> set[int]:
    return set(os.sched_getaffinity(0)) if allowed is None else allowed


def physical_cpus(allowed: set[int] | None = None, sysfs: Path = _CPUS) -> list[int]:
    """One CPU for each physical core, then the remaining hyperthreads; without sysfs every CPU counts as a core."""
    return _split_siblings(sorted(_allowed(allowed)), sysfs)[0]


def _split_siblings(cpus: list[int], sysfs: Path) -> tuple[list[int], list[int]]:
    first: list[int] = []
    rest: list[int] = []
    seen = set()
    for cpu in cpus:
        siblings = _read(sysfs / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        (rest if siblings in seen else first).append(cpu)
        seen.add(siblings)
    return first, rest


def nodes(allowed: set[int] | None = None, sysfs: Path = _NODES, meminfo: Path = _MEMINFO) -> tuple[Node, ...]:
    """Every online node, by id, also one without CPUs for us; without sysfs one node with everything."""
    cpus = _allowed(allowed)
    found = []
    for path in sysfs.glob("node[0-9]*"):
        number = path.name.removeprefix("node")
        if number.isdigit():
            mine = tuple(sorted(cpus & parse_cpus(_read(path / "cpulist"))))
            distances = tuple(int(word) for word in _read(path / "distance").split() if word.isdigit())
            found.append(Node(int(number), mine, _total(path / "meminfo"), distances))
    online = parse_cpus(_read(sysfs / "online"))
    found = [node for node in found if not online or node.id in online]
    if not any(node.cpus for node in found):
        return (Node(0, tuple(sorted(cpus)), _total(meminfo)),)
    return tuple(sorted(found, key=lambda node: node.id))


def _total(meminfo: Path) -> int:
    """Bytes; 0 where the file does not say."""
    for line in _read(meminfo).splitlines():
        words = line.split()  # "Node 0 MemTotal: 65798652 kB", without the first two in /proc
        if "MemTotal:" in words[:-1]:
            return int(words[words.index("MemTotal:") + 1]) * 1024
    return 0


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
    """One thread for each physical core we may run on, no more than the quota pays for: 2.5 CPUs are 2 threads."""
    return max(1, int(min(len(physical_cpus()), cpu_quota())))


def choose_threads(asked: int | None) -> int:
    """What a user asked for, None being the default. TooManyThreads where there are not as many CPUs."""
    if asked is None:
        return default_threads()
    cpus = _allowed(None)
    if asked > len(cpus):
        plural = "s" if len(cpus) > 1 else ""
        limit = f"this process may run on {len(cpus)} CPU{plural} ({format_cpus(cpus)})"
        raise TooManyThreads(f"{asked} threads", limit, f"use --threads {len(cpus)} or less, or leave it out")
    return asked


@dataclass(frozen=True)
class Seat:
    """Where a thread of a pool runs: the index of its node in the pool's nodes, and its CPUs; None: wherever it may."""

    node: int
    cpus: tuple[int, ...] | None


def seats(threads: int, groups: tuple[Node, ...], quota: float, sysfs: Path = _CPUS) -> list[Seat]:
    """Where each thread runs; node by node, in proportion to the nodes' cores, at least one on each.

    A thread is pinned to a CPU of its own only where the pool takes every core (or every CPU) that the process may use
    and the quota grants as many: two smaller pools that pinned themselves would meet on the same first cores. Otherwise
    it is kept to its node's CPUs, and with a single node the scheduler is free.
    """
    ordered = [_split_siblings(list(node.cpus), sysfs) for node in groups]
    cores, cpus = sum(len(first) for first, _ in ordered), sum(len(node.cpus) for node in groups)
    pinned = threads in (cores, cpus) and quota >= min(threads, cores)
    counts = [len(node.cpus) for node in groups] if threads == cpus else [len(first) for first, _ in ordered]
    if threads not in (cores, cpus):
        counts = shares(threads, counts)
    result = []
    for index, (count, (first, rest)) in enumerate(zip(counts, ordered, strict=True)):
        alone, together = [(cpu,) for cpu in first + rest], groups[index].cpus if len(groups) > 1 else None
        result += [Seat(index, alone[i] if pinned else together) for i in range(count)]
    return result


def shares(total: int, weights: list[int]) -> list[int]:
    """`total` split in proportion to the weights, at least 1 for each."""
    exact = [total * weight / max(1, sum(weights)) for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    while sum(counts) < total:
        counts[max(range(len(counts)), key=lambda i: exact[i] - counts[i])] += 1
    while sum(counts) > total:
        counts[max((i for i in range(len(counts)) if counts[i] > 1), key=lambda i: counts[i] - exact[i])] -= 1
    return counts


def group_nodes(real: tuple[Node, ...], threads: int, count: int | None = None) -> tuple[Node, ...]:
    """The groups that a pool's threads form: the real nodes with CPUs, no more than threads, or `count` virtual ones.

    1: everything together, as node -1. A multiple of the real ones: each is cut, the parts keep its id; a part's CPUs
    are its share of the node's, or all of them where they are fewer than the parts.
    """
    usable = tuple(node for node in real if node.cpus)
    if count is None:
        return usable[:threads]
    if not 1 <= count <= threads or (count > 1 and count % len(usable)):
        found, limit = f"{count} nodes", f"{threads} threads on {len(usable)} real nodes"
        raise ValueError(f"{found}; {limit}: 1, or a multiple of {len(usable)} up to {threads}")
    if count == 1 and len(usable) > 1:
        cpus = tuple(sorted(cpu for node in usable for cpu in node.cpus))
        return (Node(-1, cpus, sum(node.memory_bytes for node in usable)),)
    parts = count // len(usable)
    return tuple(
        Node(node.id, node.cpus[part::parts] or node.cpus, node.memory_bytes // parts, node.distances)
        for node in usable
        for part in range(parts)
    )
