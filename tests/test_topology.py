"""CPUs, quotas and NUMA nodes are read from any tree; threads go where the tree lets them."""

import math
import os
from pathlib import Path

import pytest

from cpu_kernels.topology import (
    Node,
    TooManyThreads,
    choose_threads,
    cpu_quota,
    default_threads,
    format_cpus,
    group_nodes,
    nodes,
    parse_cpus,
    physical_cpus,
    seats,
    shares,
)


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _node_tree(root: Path, cpulists: dict[int, str], **files: str) -> Path:
    names = {f"node{i}/cpulist": f"{cpus}\n" for i, cpus in cpulists.items()}
    memory = {f"node{i}/meminfo": f"Node {i} MemTotal:  {1 + i} kB\nNode {i} MemFree:  1 kB\n" for i in cpulists}
    distances = {f"node{i}/distance": " ".join("10" if i == j else "21" for j in cpulists) + "\n" for i in cpulists}
    return _tree(root, names | memory | distances | files)


def _siblings(root: Path, groups: list[str]) -> Path:
    files = {f"cpu{cpu}/topology/thread_siblings_list": f"{text}\n" for text in groups for cpu in parse_cpus(text)}
    return _tree(root, files)


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,8", {0, 1, 2, 3, 8}), ("5", {5}), ("", set()), ("0,2-3\n", {0, 2, 3})]
)
def test_sets_of_cpus(text, cpus):
    assert parse_cpus(text) == cpus
    assert format_cpus(cpus) == text.strip()


def test_one_thread_for_each_physical_core(tmp_path):
    sysfs = _siblings(tmp_path, ["0,4", "1,5", "2", "7"])
    assert physical_cpus({0, 1, 2, 4, 5, 7}, sysfs) == [0, 1, 2, 7]
    assert physical_cpus({4, 5}, sysfs) == [4, 5]  # the mask hides their siblings
    assert physical_cpus({3, 9}, sysfs) == [3, 9]  # no topology known: every CPU is a core


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a\n", {"cpu.max": "50000 100000\n", "a/cpu.max": "250000 100000\n"}, 0.5),
        ("0::/\n", {}, math.inf),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, math.inf),
        (
            "5:cpu,cpuacct:/a\n1:memory:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("5:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, math.inf),
    ],
)
def test_the_smallest_quota_of_all_groups_counts(tmp_path, cgroup, files, quota):
    assert cpu_quota(_tree(tmp_path, {"self": cgroup}) / "self", _tree(tmp_path, files)) == quota


@pytest.mark.parametrize(("quota", "threads"), [(math.inf, 4), (2.5, 2), (0.5, 1), (9.0, 4)])
def test_default_threads_respect_the_quota(monkeypatch, quota, threads):
    monkeypatch.setattr("cpu_kernels.topology.cpu_quota", lambda: quota)
    monkeypatch.setattr("cpu_kernels.topology.physical_cpus", lambda: [0, 1, 2, 3])
    assert default_threads() == threads
    assert choose_threads(None) == threads


def test_default_threads_respect_the_mask():
    everything = os.sched_getaffinity(0)
    assert 1 <= default_threads() <= len(everything)
    os.sched_setaffinity(0, {min(everything)})
    try:
        assert default_threads() == 1
        assert choose_threads(1) == 1
        with pytest.raises(TooManyThreads, match=r"2 threads; this process may run on 1 CPU \(0\); use --threads 1"):
            choose_threads(2)
    finally:
        os.sched_setaffinity(0, everything)
    assert choose_threads(len(everything)) == len(everything)


def test_one_node(tmp_path):
    found = nodes({0, 1, 2, 3}, _node_tree(tmp_path, {0: "0-3"}))
    assert found == (Node(0, (0, 1, 2, 3), 1024, (10,)),)


def test_four_nodes_with_uneven_cores_of_which_some_are_masked(tmp_path):
    sysfs = _node_tree(tmp_path, {0: "0-3", 1: "4-5", 2: "6", 10: "8-9"}, online="0-2,10\n", possible="0-15\n")
    found = nodes({0, 1, 4, 5, 6, 7, 9}, sysfs)
    assert [(node.id, node.cpus) for node in found] == [(0, (0, 1)), (1, (4, 5)), (2, (6,)), (10, (9,))]
    assert [node.memory_bytes for node in found] == [1024, 2048, 3072, 11 * 1024]
    assert found[1].distances == (21, 10, 21, 21)


def test_nodes_that_are_offline_or_have_no_cpus(tmp_path):
    sysfs = _node_tree(tmp_path, {0: "0-1", 1: "", 2: "2-3"}, online="0-1")  # 1: memory alone; 2: taken offline
    found = nodes({0, 1, 2, 3}, sysfs)
    assert [(node.id, node.cpus) for node in found] == [(0, (0, 1)), (1, ())]
    assert [node.id for node in group_nodes(found, 4)] == [0]


@pytest.mark.parametrize("cpulists", [{}, {0: "8-9"}])
def test_without_usable_sysfs_everything_is_one_node(tmp_path, cpulists):
    (tmp_path / "meminfo").write_text("MemTotal:       7 kB\n")
    found = nodes({3, 1}, _node_tree(tmp_path / "node", cpulists), tmp_path / "meminfo")
    assert found == (Node(0, (1, 3), 7 * 1024),)


def _made(*cpulists: str) -> tuple[Node, ...]:
    return tuple(Node(i, tuple(sorted(parse_cpus(text))), 1 << 30) for i, text in enumerate(cpulists))


def _where(placed) -> list[tuple[int, tuple[int, ...] | None]]:
    return [(seat.node, seat.cpus) for seat in placed]


def test_a_pool_on_every_core_is_pinned(tmp_path):
    sysfs = _siblings(tmp_path, ["0,2", "1,3"])
    assert _where(seats(2, _made("0-3"), math.inf, sysfs)) == [(0, (0,)), (0, (1,))]
    assert _where(seats(4, _made("0-3"), math.inf, sysfs)) == [(0, (0,)), (0, (1,)), (0, (2,)), (0, (3,))]


@pytest.mark.parametrize(("threads", "quota"), [(1, math.inf), (3, math.inf), (9, math.inf), (2, 1.5)])
def test_a_smaller_pool_or_a_quota_or_too_many_threads_leave_it_to_the_scheduler(tmp_path, threads, quota):
    sysfs = _siblings(tmp_path, ["0,2", "1,3"])
    assert _where(seats(threads, _made("0-3"), quota, sysfs)) == [(0, None)] * threads


def test_on_several_nodes_a_thread_stays_on_its_own(tmp_path):
    sysfs = _siblings(tmp_path, ["0,8", "2,10", "4,12", "1,9"])  # even CPUs on node 0, as many machines number them
    real = _made("0,2,4,8,10,12", "1,9")
    assert _where(seats(4, real, math.inf, sysfs)) == [(0, (0,)), (0, (2,)), (0, (4,)), (1, (1,))]
    assert [seat.node for seat in seats(8, real, math.inf, sysfs)] == [0] * 6 + [1] * 2
    assert _where(seats(3, real, math.inf, sysfs)) == [(0, real[0].cpus)] * 2 + [(1, real[1].cpus)]
    assert _where(seats(4, real, 3.0, sysfs)) == [(0, real[0].cpus)] * 3 + [(1, real[1].cpus)]


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (8, [4, 4], [4, 4]),
        (3, [4, 4], [2, 1]),
        (2, [9, 1], [1, 1]),
        (5, [1, 6, 1], [1, 3, 1]),
        (7, [3, 2, 2, 1], [2, 2, 2, 1]),
    ],
)
def test_shares_are_proportional_and_never_empty(total, weights, expected):
    assert shares(total, weights) == expected


def test_virtual_nodes_cut_the_real_ones():
    one, two = _made("0-3"), _made("0-1", "2-3")
    assert group_nodes(two, 4) == two
    assert group_nodes(two, 1) == two[:1]
    assert [(node.id, node.cpus) for node in group_nodes(one, 4, 2)] == [(0, (0, 2)), (0, (1, 3))]
    assert [(node.id, node.cpus) for node in group_nodes(two, 4, 4)] == [(0, (0,)), (0, (1,)), (1, (2,)), (1, (3,))]
    assert [(node.id, node.cpus) for node in group_nodes(two, 4, 1)] == [(-1, (0, 1, 2, 3))]
    assert [node.cpus for node in group_nodes(_made("5"), 3, 3)] == [(5,), (5,), (5,)]
    assert sum(node.memory_bytes for node in group_nodes(one, 4, 2)) == 1 << 30
    for impossible in (0, 3, 6):
        with pytest.raises(ValueError, match=f"{impossible} nodes; 4 threads on 2 real nodes"):
            group_nodes(two, 4, impossible)
