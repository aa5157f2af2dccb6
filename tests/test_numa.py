"""Threads know their node, memory goes to a node as far as the machine lets it, and what it forbids is said."""

import ctypes
import errno
import os
import weakref

import numpy as np
import pytest

from cpu_kernels import Pool, pages, topology
from cpu_kernels.atomic import load_i64, store_i64
from cpu_kernels.jit import job
from cpu_kernels.pool import NODES, SEAT_BYTES, SEATS


@job
def _look(arguments, thread, threads):
    """(control, out [threads, 5]): the seat as the thread finds it, and the number of nodes."""
    control, out = load_i64(arguments), load_i64(arguments + 8) + 40 * thread
    for i in range(0, SEAT_BYTES, 8):
        store_i64(out + i, load_i64(control + SEATS + SEAT_BYTES * thread + i))
    store_i64(out + 32, load_i64(control + NODES))


@pytest.mark.parametrize(
    ("threads", "nodes", "expected"),
    [
        (1, 1, [[0, 0, 1, 0]]),
        (2, 2, [[0, 0, 1, 0], [1, 0, 1, 1]]),
        (4, 2, [[0, 0, 2, 0], [0, 1, 2, 0], [1, 0, 2, 2], [1, 1, 2, 2]]),
        (3, 1, [[0, 0, 3, 0], [0, 1, 3, 0], [0, 2, 3, 0]]),
        (5, 4, [[0, 0, 2, 0], [0, 1, 2, 0], [1, 0, 1, 2], [2, 0, 1, 3], [3, 0, 1, 4]]),
    ],
)
def test_jobs_read_their_seat(monkeypatch, threads, nodes, expected):
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    monkeypatch.setattr(topology, "nodes", lambda: (topology.Node(0, cpus[:1] * 4, 0),))
    out = np.zeros((threads, 5), np.int64)
    with Pool(threads, nodes=nodes) as pool:
        assert len(pool.nodes) == nodes
        assert list(pool.node_of_thread) == [row[0] for row in expected]
        pool.run(_look.address, np.array([pool.control, out.ctypes.data], np.int64))
    assert out.tolist() == [[*row, nodes] for row in expected]


def test_on_several_nodes_the_caller_stays_on_the_first_until_the_pool_ends(monkeypatch):
    before = os.sched_getaffinity(0)
    cpu = min(before)
    real = (topology.Node(0, (cpu,), 0), topology.Node(1, (max(before),), 0))
    monkeypatch.setattr(topology, "nodes", lambda: real)
    with Pool(4) as pool:
        assert pool.nodes == real
        assert os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == before


def test_a_container_that_forbids_pinning_is_noted(monkeypatch):
    def forbid(thread: int, cpus: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    cpus = tuple(sorted(os.sched_getaffinity(0)))
    monkeypatch.setattr(topology, "nodes", lambda: (topology.Node(0, cpus[:1], 0), topology.Node(1, cpus[-1:], 0)))
    monkeypatch.setattr(os, "sched_setaffinity", forbid)
    out = np.zeros((2, 5), np.int64)
    with Pool(2) as pool:
        pool.run(_look.address, np.array([pool.control, out.ctypes.data], np.int64))
        assert str(pool).endswith("threads are not pinned: Operation not permitted")
    assert out[1].tolist() == [1, 0, 1, 1, 2]


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, (2 << 20) - 1, 2 << 20, (5 << 20) + 3])
@pytest.mark.parametrize("huge", [True, False])
def test_memory_is_zero_aligned_and_of_the_size_asked_for(size, huge):
    memory, placement = pages.allocate(size, huge=huge)
    assert (memory.dtype, memory.shape, memory.flags.c_contiguous) == (np.uint8, (size,), True)
    assert memory.ctypes.data % (pages.HUGE if huge and size >= pages.HUGE else 4096) == 0 or not size
    assert placement.nodes == ()
    assert not memory.any()
    memory[:] = 7
    assert memory.sum(dtype=np.int64) == 7 * size
    if size < pages.HUGE or not huge:
        assert placement == pages.Placement((), "small")


def _mapped(address: int) -> bool:
    """Whether the page can be asked about at all: mincore refuses memory that is not mapped."""
    return ctypes.CDLL(None).mincore(ctypes.c_void_p(address & -4096), ctypes.c_size_t(4096), bytes(1)) == 0


def test_memory_is_freed_with_its_last_view():
    memory, _ = pages.allocate(3 << 20)
    address, gone = memory.ctypes.data, weakref.ref(memory)
    view = memory[: 1 << 20].view(np.float32).reshape(512, -1)
    del memory
    assert _mapped(address)
    view[0, 0] = 1
    del view
    assert gone() is None
    assert not _mapped(address)


def test_memory_on_a_node_or_the_reason_why_not():
    node = topology.nodes()[0].id
    memory, placement = pages.allocate(4 << 20, node)
    memory[:] = 1
    found = pages.node_of(memory.ctypes.data + (3 << 20))
    if placement.nodes:
        assert placement.nodes == (node,)
        assert found in (node, None)
    else:
        assert any("mbind" in reason for reason in placement.refused)


def test_memory_spread_over_nodes():
    node = topology.nodes()[0].id
    memory, placement = pages.allocate(8192, (node,))
    memory[:] = 1
    assert placement.nodes == (node,) or "mbind" in placement.refused[0]


def test_what_the_machine_refuses_is_said(monkeypatch):
    monkeypatch.setattr(pages, "_call", lambda which, *arguments: errno.EPERM)
    memory, placement = pages.allocate(8192, 0)
    memory[:] = 1
    assert placement.nodes == ()
    assert "where it is first touched, small pages; memory on node 0 (mbind): forbidden here" in str(placement)
    assert pages.node_of(memory.ctypes.data) is None


def test_a_node_that_is_not_there_is_refused_and_said():
    memory, placement = pages.allocate(8192, 1000)
    memory[:] = 1
    assert placement.nodes == ()
    assert placement.refused[0].startswith("memory on node 1000 (mbind): ")
    with pytest.raises(ValueError, match="numbered 0 to 1023"):
        pages.allocate(8192, 1024)


def test_a_machine_without_these_system_calls(monkeypatch):
    monkeypatch.setattr(pages, "_CALLS", None)
    memory, placement = pages.allocate(8192, 0)
    memory[:] = 1
    assert placement.refused == ("memory on node 0 (mbind): unknown to this kernel",)


def test_huge_pages_switched_off_are_said(monkeypatch, tmp_path):
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr(pages, "_THP", tmp_path / "enabled")
    memory, placement = pages.allocate(4 << 20)
    memory[:] = 1
    assert (placement.pages, placement.refused) == ("small", ("transparent huge pages: switched off on this machine",))


def test_reserved_pages_that_another_took_meanwhile(monkeypatch, tmp_path):
    (tmp_path / "free").write_text("64\n")  # more than this machine has
    monkeypatch.setattr(pages, "_RESERVED", tmp_path / "free")
    memory, placement = pages.allocate(4 << 20)
    memory[:] = 1
    if placement.pages != "reserved huge":
        assert placement.refused[0].startswith("reserved huge pages: ")


def test_address_space_that_is_not_there():
    with pytest.raises(MemoryError, match=r"no .* bytes of address space"):
        pages.allocate(1 << 60)
