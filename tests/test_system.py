"""What the doctor says of machines that are not this one, and of what surrounds the process."""

import os
import resource
from collections import namedtuple
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import psutil
import pytest

import cpu_kernels
from cpu_kernels.cpu import KNOWN
from cpu_kernels.machines.generic import Generic
from hetero import environment, system
from hetero.system import Finding

Write = Callable[..., Path]
CPU = "sys/devices/system/cpu/"
NODE = "sys/devices/system/node/"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write({"proc/x": text, ...}) -> the root of a system with these files"""

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return make


def siblings(*cores: str) -> dict[str, str]:
    """Files of CPUs that share cores: "0,2", "1,3" """
    return {f"{CPU}cpu{cpu}/topology/thread_siblings_list": core for core in cores for cpu in core.split(",")}


# ---- the machine -----------------------------------------------------------------------------------------------------


def test_cores_of_mask_and_quota(write: Write) -> None:
    root = write({f"{CPU}online": "0-3", **siblings("0,2", "1,3"), "proc/self/cgroup": "0::/box"})
    whole = system.cores(root, {0, 1, 2, 3})
    assert whole.status == "ok" and whole.found == "2 cores, 4 hyperthreads; 2 threads by default"
    masked = system.cores(root, {1, 3})
    assert masked.status == "warning" and "1 of the cores (CPUs 1,3)" in masked.found and "taskset" in masked.remedy
    write({"sys/fs/cgroup/box/cpu.max": "150000 100000"})
    limited = system.cores(root, {0, 1, 2, 3})
    assert limited.status == "warning" and "quota of 1.5 CPUs" in limited.found and "1 thread by" in limited.found


def test_frequency(write: Write) -> None:
    assert system.frequency(write({})).status == "ok"
    policy = f"{CPU}cpu0/cpufreq/"
    files = {f"{policy}scaling_governor": "performance", f"{policy}scaling_driver": "acpi-cpufreq"}
    files |= {f"{policy}cpuinfo_max_freq": "4000000", f"{policy}scaling_max_freq": "4000000"}
    assert system.frequency(write(files)) == Finding("frequency", "ok", "governor performance (acpi-cpufreq)")
    slow = system.frequency(write({f"{policy}scaling_governor": "powersave"}))
    assert slow.status == "warning" and "performance" in slow.remedy
    low = system.frequency(write({f"{policy}scaling_governor": "performance", f"{policy}scaling_max_freq": "2000000"}))
    assert low.status == "warning" and "limited to 2.0 of 4.0 GHz" in low.found


def two_nodes(second: int = 65798652) -> dict[str, str]:
    files = {f"{NODE}online": "0-1"}
    for node, size in ((0, 65798652), (1, second)):
        files |= {f"{NODE}node{node}/cpulist": str(node), f"{NODE}node{node}/distance": "10 21"}
        files |= {f"{NODE}node{node}/meminfo": f"Node {node} MemTotal: {size} kB"}
    return files


def test_numa(write: Write) -> None:
    def allowed(nodes: tuple[int, ...]) -> tuple[str, ...]:
        return ()

    def refused(nodes: tuple[int, ...]) -> tuple[str, ...]:
        return ("memory on node 0 (mbind): forbidden here",)

    root = write({"proc/meminfo": "MemTotal: 1000000 kB"})
    assert system.numa(root, {0}, refused).status == "ok"  # one node needs no binding
    root = write(two_nodes())
    good = system.numa(root, {0, 1}, allowed)
    assert (
        good.status == "ok" and "2 nodes (node 0: 1 CPUs, 62.75 GiB" in good.found and "mbind is allowed" in good.found
    )
    bad = system.numa(root, {0, 1}, refused)
    assert bad.status == "warning" and "forbidden" in bad.found and "SYS_NICE" in bad.remedy
    assert "no CPU of node 1" in system.numa(root, {0}, allowed).found
    assert "node 1 has no memory" in system.numa(write(two_nodes(second=0)), {0, 1}, allowed).found


@pytest.mark.parametrize(
    ("mode", "reserved", "status"),
    [
        ("[always] madvise never", 0, "ok"),
        ("always [madvise] never", 0, "ok"),
        ("always madvise [never]", 0, "warning"),
        ("always madvise [never]", 512, "ok"),
        (None, 0, "warning"),
    ],
)
def test_huge_pages(write: Write, mode: str | None, reserved: int, status: str) -> None:
    pages = "sys/kernel/mm/hugepages/hugepages-2048kB/"
    files = {pages + "nr_hugepages": str(reserved), pages + "free_hugepages": str(reserved)}
    if mode:
        files["sys/kernel/mm/transparent_hugepage/enabled"] = mode
    found = system.huge_pages(write(files))
    assert found.status == status and bool(found.remedy) == (status == "warning")
    assert ("512 of 2 MiB reserved" in found.found) == bool(reserved)


Memory = namedtuple("Memory", "total available")


def test_memory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(64 << 30, 60 << 30))
    root = write({"proc/self/cgroup": "4:memory:/a/b\n0::/", "sys/fs/cgroup/memory/a/b/x": ""})
    write({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"})
    assert system.memory(root) == Finding("memory", "ok", "60.00 GiB free of 64.00 GiB")
    write({"sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(16 << 30)})
    write({"sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(1 << 30)})
    limited = system.memory(root)
    assert limited.status == "warning" and "limits this process to 16.00 GiB" in limited.found
    assert limited.found.startswith("15.00 GiB free") and "container" in limited.remedy
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(64 << 30, 1 << 30))
    assert "little is free" in system.memory(write({"proc/self/cgroup": "0::/"})).found


def test_memory_limit_of_version_2(write: Write) -> None:
    root = write({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/memory.max": "max"})
    assert system.memory_limit(root) is None
    write({"sys/fs/cgroup/a/memory.max": "5000"})
    assert system.memory_limit(root) == 5000


def test_swap(write: Write) -> None:
    assert system.swap(write({"proc/meminfo": "SwapTotal: 0 kB\nSwapFree: 0 kB"})).found == "none"
    assert system.swap(write({"proc/meminfo": "SwapTotal: 2048 kB\nSwapFree: 2048 kB"})).status == "ok"
    used = system.swap(write({"proc/meminfo": "SwapTotal: 2048 kB\nSwapCached: 7 kB\nSwapFree: 1024 kB"}))
    assert used.status == "warning" and used.found == "2.00 MiB; 1.00 MiB in use" and "swapoff" in used.remedy


def test_cpu_names_the_kernels(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write({"proc/cpuinfo": "model name\t: Some CPU"})
    monkeypatch.setattr("cpu_kernels.cpu.FEATURES", KNOWN["znver4"])
    found = system.cpu(root)
    assert found.found.startswith("Some CPU: ") and f"({cpu_kernels.machine.MACHINE.__name__})" in found.found
    assert "avx512vnni" in found.found
    monkeypatch.setattr("cpu_kernels.machine.MACHINE", Generic)
    with monkeypatch.context() as patch:
        patch.setenv("NUMBA_CPU_NAME", "generic")
        assert system.cpu(write({})).remedy == "unset NUMBA_CPU_NAME=generic"
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    slow = system.cpu(root)
    assert slow.status == "warning" and "generic kernels" in slow.found
    monkeypatch.setattr("cpu_kernels.cpu.FEATURES", KNOWN["znver4"] | {"amx-tile", "amx-int8"})
    monkeypatch.setattr("cpu_kernels.cpu.TILES", False)
    assert "AMX, which this system does not let us use" in system.cpu(root).found


# ---- what surrounds the process -------------------------------------------------------------------------------------


def test_limits(write: Write) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert environment.limits(write({}), lambda which: unlimited).status == "ok"
    small = environment.limits(write({}), lambda which: (1 << 30, 1 << 30))
    assert small.status == "warning" and "1.00 GiB" in small.found and "ulimit -v" in small.remedy
    strict = environment.limits(write({"proc/sys/vm/overcommit_memory": "2"}), lambda which: unlimited)
    assert strict.status == "warning" and "overcommit" in strict.remedy


def versions_of(**there: str) -> Callable[[str], str]:
    def version(package: str) -> str:
        if package not in there:
            raise PackageNotFoundError(package)
        return there[package]

    return version


def test_gpu_is_named(write: Write) -> None:
    nothing = environment.gpu(write({}), versions_of())
    assert nothing.status == "ok" and "none" in nothing.found and "torch not there" in nothing.found
    files = {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA GeForce RTX 4090\nIRQ: 5"}
    files["proc/driver/nvidia/version"] = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\nGCC version:"
    found = environment.gpu(write(files), versions_of(torch="2.12.0")).found
    assert found.startswith("NVIDIA GeForce RTX 4090, driver 550.54.15; torch 2.12.0")


def test_versions_name_what_is_missing() -> None:
    assert environment.versions().status == "ok"
    there = dict.fromkeys(environment.REQUIRED, "1.0")
    del there["numba"]
    missing = environment.versions(versions_of(**there))
    assert missing.status == "broken" and missing.found.endswith("missing: numba")
    assert missing.remedy == "pip install numba"


def test_the_cache_directory_must_be_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, environ = tmp_path / "hetero" / "kernels-1", {"XDG_CACHE_HOME": str(tmp_path)}
    path.mkdir(parents=True, mode=0o700)
    path.parent.chmod(0o755)
    (path / "code").write_bytes(bytes(2048))
    good = environment.cache_directory(path, environ)
    assert good.status == "ok" and good.found == f"{path} (2.00 KiB)"
    path.parent.chmod(0o777)
    open_to_all = environment.cache_directory(path, environ)
    assert open_to_all.status == "warning" and "mode 0777" in open_to_all.found
    assert open_to_all.remedy == f"chmod 700 {path.parent}"
    elsewhere = environment.cache_directory(path, {"XDG_CACHE_HOME": str(tmp_path / "other")})
    assert elsewhere.status == "warning" and "compiled again at each start" in elsewhere.found
    path.parent.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert f"belongs to user {path.stat().st_uid}" in environment.cache_directory(path, environ).found


@pytest.mark.parametrize(("kind", "status"), [("ext4", "ok"), ("nfs4", "warning"), ("tmpfs", "warning")])
def test_disk(write: Write, tmp_path: Path, kind: str, status: str) -> None:
    mounts = f"1 0 8:1 / / rw - xfs /dev/a rw\n2 1 8:2 / {tmp_path} rw,relatime shared:1 - {kind} /dev/b rw"
    root = write({"proc/self/mountinfo": mounts})
    found = environment.disk(tmp_path, root, lambda path: (9, 9, 5 << 30))
    assert found.status == status and found.found.startswith(f"5.00 GiB free on {kind} under {tmp_path}")
    assert environment.disk(tmp_path.parent, root, lambda path: (9, 9, 1 << 20)).status == "warning"
    assert environment.file_system(tmp_path.parent, root) == "xfs"


def test_variables() -> None:
    assert environment.variables({"PATH": "x", "NUMBA_NUM_THREADS": "3", "OMP_PROC_BIND": "false"}).status == "ok"
    for name in ("NUMBA_CPU_NAME", "NUMBA_OPT", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "LD_PRELOAD"):
        found = environment.variables({name: "true"})
        assert found.status == "warning" and f"{name}=true" in found.found and f"unset {name}" in found.remedy
    assert environment.variables({"NUMBA_DISABLE_JIT": "1"}).status == "broken"
