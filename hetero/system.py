"""What this machine has, and what of it this process may use: a finding each. Only reads, below `root`."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from hetero.free_memory import free_memory
from hetero.sizes import format_size

ROOT = Path("/")
LITTLE_MEMORY = 4 << 30
_CPUS, _NODES = "sys/devices/system/cpu", "sys/devices/system/node"
_PROC, _CGROUPS = "proc/self/cgroup", "sys/fs/cgroup"
_THP, _RESERVED = "sys/kernel/mm/transparent_hugepage", "sys/kernel/mm/hugepages/hugepages-2048kB"
_FLAGS = (
    *("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16"),
    *("amx-tile", "amx-int8", "neon", "dotprod", "i8mm"),
)
_NAMES = {
    "Amx": "AMX",
    "Vnni512": "AVX-512 VNNI",
    "Vnni256": "AVX-VNNI",
    "Avx2": "AVX2",
    "NeonI8mm": "i8mm",
    "NeonDot": "dotprod",
    "Generic": "generic",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: what was looked at, how it is, what was found, and what to do about it."""

    name: str
    status: Literal["ok", "warning", "broken"]
    found: str
    remedy: str = ""


def judged(name: str, found: str, *troubles: tuple[str, str]) -> Finding:
    """A warning if there is any trouble (what, remedy)."""
    parts = [part for part in (found, *(what for what, _ in troubles)) if part]
    remedies = dict.fromkeys(remedy for _, remedy in troubles)
    return Finding(name, "warning" if troubles else "ok", "; ".join(parts), "; ".join(remedies))


def read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def cpu(root: Path = ROOT) -> Finding:
    from cpu_kernels.cpu import FEATURES, TILES, has_amx
    from cpu_kernels.machine import MACHINE

    lines = read(root / "proc/cpuinfo").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    flags = " ".join(flag for flag in _FLAGS if flag in FEATURES) or "no flags that matter"
    found = f"{name}: {_NAMES.get(MACHINE.__name__, MACHINE.__name__)} kernels ({MACHINE.__name__}); {flags}"
    troubles = []
    if MACHINE.__name__ == "Generic":
        chosen = os.environ.get("NUMBA_CPU_NAME")
        remedy = f"unset NUMBA_CPU_NAME={chosen}" if chosen else "use a CPU with AVX2 or NEON dotprod"
        troubles.append(("no instructions for products of bytes: slow", remedy))
    if has_amx(FEATURES) and not TILES:
        remedy = "Linux 5.16 or later, and no seccomp rule against arch_prctl"
        troubles.append(("it has AMX, which this system does not let us use", remedy))
    return judged("cpu", found, *troubles)


def cores(root: Path = ROOT, allowed: set[int] | None = None) -> Finding:
    from cpu_kernels.topology import cpu_quota, format_cpus, parse_cpus, physical_cpus

    mask = set(os.sched_getaffinity(0)) if allowed is None else allowed
    online = parse_cpus(read(root / _CPUS / "online")) or mask
    there, usable = (len(physical_cpus(cpus, root / _CPUS)) for cpus in (online, mask))
    quota = cpu_quota(root / _PROC, root / _CGROUPS)
    threads = max(1, int(min(usable, quota)))
    smt = f", {len(online)} hyperthreads" if len(online) > there else ""
    found = f"{there} core{'s' * (there > 1)}{smt}; {threads} thread{'s' * (threads > 1)} by default"
    troubles = []
    if usable < there:
        what = f"this process may run on {usable} of the cores (CPUs {format_cpus(mask)})"
        troubles.append((what, "start it without taskset, or widen the container's --cpuset-cpus"))
    if quota < usable:
        troubles.append((f"a cgroup's quota of {quota:g} CPUs", "raise the container's --cpus"))
    return judged("cores", found, *troubles)


def frequency(root: Path = ROOT) -> Finding:
    policies = sorted((root / _CPUS).glob("cpu[0-9]*/cpufreq"))
    governors = {read(policy / "scaling_governor") for policy in policies} - {""}
    if not governors:
        return Finding("frequency", "ok", "the system does not say (a virtual machine, or the firmware decides)")
    driver = read(policies[0] / "scaling_driver")
    troubles = []
    if "powersave" in governors:
        remedy = "cpupower frequency-set -g performance (as root; some percent faster)"
        troubles.append(("powersave slows threads down", remedy))
    highest, limit = (_largest(policies, name) for name in ("cpuinfo_max_freq", "scaling_max_freq"))
    if limit and limit < 0.9 * highest:
        what = f"limited to {limit / 1e6:.1f} of {highest / 1e6:.1f} GHz"
        troubles.append((what, f"cpupower frequency-set -u {highest}kHz (as root)"))
    found = f"governor {', '.join(sorted(governors))}" + (f" ({driver})" if driver else "")
    return judged("frequency", found, *troubles)


def _largest(policies: list[Path], name: str) -> int:
    return max((int(text) for text in (read(policy / name) for policy in policies) if text.isdigit()), default=0)


def _refusals(nodes: tuple[int, ...]) -> tuple[str, ...]:
    """What the kernel says to memory on each of these nodes."""
    from cpu_kernels.pages import allocate

    return tuple(dict.fromkeys(line for node in nodes for line in allocate(4096, node, huge=False)[1].refused))


def numa(
    root: Path = ROOT,
    allowed: set[int] | None = None,
    refusals: Callable[[tuple[int, ...]], tuple[str, ...]] = _refusals,
) -> Finding:
    from cpu_kernels.topology import nodes

    found = nodes(allowed, root / _NODES, root / "proc/meminfo")
    refused = refusals(tuple(node.id for node in found if node.memory_bytes))
    if len(found) == 1:
        return Finding("NUMA", "ok", "1 node" + ("; mbind is refused, and not needed here" if refused else ""))
    sizes = ", ".join(f"node {node.id}: {len(node.cpus)} CPUs, {format_size(node.memory_bytes)}" for node in found)
    troubles = [(line, "docker run --cap-add SYS_NICE, or a seccomp profile that allows mbind") for line in refused]
    for node in found:
        if node.cpus and not node.memory_bytes:
            remedy = "fill that socket's memory slots: half the machine's bandwidth is missing"
            troubles.append((f"node {node.id} has no memory", remedy))
        if not node.cpus and node.memory_bytes:
            troubles.append((f"no CPU of node {node.id} may be used", "widen the affinity mask to all sockets"))
    return judged("NUMA", f"{len(found)} nodes ({sizes})" + ("" if refused else "; mbind is allowed"), *troubles)


def huge_pages(root: Path = ROOT) -> Finding:
    mode = read(root / _THP / "enabled").partition("[")[2].partition("]")[0]
    free, total = (int(read(root / _RESERVED / name) or 0) for name in ("free_hugepages", "nr_hugepages"))
    reserved = f"{total} of 2 MiB reserved, {free} free" if total else "none reserved"
    found = f"transparent: {mode or 'not in this kernel'}; {reserved}"
    if mode in ("always", "madvise") or free:
        return Finding("huge pages", "ok", found)
    remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)"
    return judged("huge pages", found, ("weights lie in small pages: some percent slower", remedy))


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes: the smallest limit of the process's cgroups and their ancestors; None without one."""
    limits = list[int]()
    for group in _memory_groups(root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = read(group / name)
            limits += [int(text)] if text.isdigit() else []
    smallest = min(limits, default=1 << 62)
    return None if smallest >= 1 << 60 else smallest  # version 1 says "none" by a huge number


def _memory_groups(root: Path) -> Iterator[Path]:
    for line in read(root / _PROC).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            base, group = root / _CGROUPS / ("memory" if controllers else ""), Path(path.lstrip("/"))
            yield from (base / level for level in (group, *group.parents))


def memory(root: Path = ROOT) -> Finding:
    total, free, limit = psutil.virtual_memory().total, free_memory(root / _PROC, root / _CGROUPS), memory_limit(root)
    troubles = []
    if limit is not None and limit < total:
        troubles.append((f"a cgroup limits this process to {format_size(limit)}", "raise the container's --memory"))
    if free < LITTLE_MEMORY:
        troubles.append(("little is free", "close other programs"))
    return judged("memory", f"{format_size(free)} free of {format_size(total)}", *troubles)


def swap(root: Path = ROOT) -> Finding:
    sizes = dict.fromkeys(("SwapTotal", "SwapFree"), 0)
    for line in read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name in sizes:
            sizes[name] = 1024 * int(value.split()[0])
    total, used = sizes["SwapTotal"], sizes["SwapTotal"] - sizes["SwapFree"]
    if not total:
        return Finding("swap", "ok", "none")
    remedy = "close what fills the memory, then `swapoff -a && swapon -a` (as root): weights that are swapped out crawl"
    troubles = [(f"{format_size(used)} in use", remedy)] if used else []
    return judged("swap", f"{format_size(total)}" + ("" if used else ", unused"), *troubles)


SYSTEM = (cpu, cores, frequency, numa, huge_pages, memory, swap)
