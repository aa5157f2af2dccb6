"""Memory for weights: on a NUMA node, in huge pages, as far as this machine allows; what it did not allow is said.

No libnuma: `mbind` is a system call. Nothing here fails for want of a permission: then pages lie on the node of the
thread that touches them first, and are small.
"""

import ctypes
import errno
import mmap
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_CALLS = {"x86_64": (237, 239), "aarch64": (235, 236)}.get(platform.machine())  # mbind, get_mempolicy
_PREFERRED, _INTERLEAVE = 1, 3
_NODE_OF_ADDRESS = 1 | 2  # MPOL_F_NODE | MPOL_F_ADDR
_HUGETLB = 0x40000  # MAP_HUGETLB: pages that the administrator reserved
HUGE = 2 << 20
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_RESERVED = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
_MAX_NODES = 1024


@dataclass(frozen=True)
class Placement:
    """What became of a request; as a string, a line for the user.

    `pages`: "reserved huge", "transparent huge" (where the kernel finds room for them) or "small".
    `refused`: what the machine did not allow, a sentence each.
    """

    nodes: tuple[int, ...]  # that the memory is bound to; () for none
    pages: str
    refused: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"on node {', '.join(map(str, self.nodes))}" if self.nodes else "where it is first touched"
        return "; ".join([f"{where}, {self.pages} pages", *self.refused])


def allocate(size: int, node: int | tuple[int, ...] | None = None, huge: bool = True) -> tuple[np.ndarray, Placement]:
    """`size` zero bytes [uint8], 2 MiB-aligned where huge, else page-aligned; freed with the array and its views.

    Nothing is touched: pages appear when they are first written. `node`: where they shall lie (with a full node they
    lie elsewhere); several: spread over these, page by page. Raises MemoryError where the address space is too small.
    """
    if size < 0:
        raise ValueError(f"{size} bytes")
    refused: list[str] = []
    nodes = () if node is None else (node,) if isinstance(node, int) else tuple(node)
    memory, pages = _map(size, huge, refused)
    if nodes and size and not _bind(memory.ctypes.data, len(memory), nodes, refused):
        nodes = ()
    memory = memory[:size]
    return memory, Placement(nodes, pages, tuple(refused))


def _map(size: int, huge: bool, refused: list[str]) -> tuple[np.ndarray, str]:
    """Whole pages that hold `size` bytes, and their kind."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if huge and size >= HUGE:
        whole = -(-size // HUGE) * HUGE
        if _free_reserved() * HUGE >= whole:
            try:
                return np.frombuffer(mmap.mmap(-1, whole, flags | _HUGETLB), np.uint8), "reserved huge"
            except OSError as error:
                refused.append(f"reserved huge pages: {_reason(error.errno)}")
        area = _mapping(whole + HUGE, flags)
        memory = np.frombuffer(area, np.uint8)
        first = -memory.ctypes.data % HUGE
        memory = memory[first : first + whole]
        return memory, "transparent huge" if _advise(area, refused) else "small"
    return np.frombuffer(_mapping(-(-max(1, size) // mmap.PAGESIZE) * mmap.PAGESIZE, flags), np.uint8), "small"


def _mapping(size: int, flags: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size, flags)
    except OSError as error:
        raise MemoryError(f"no {size:,} bytes of address space: {_reason(error.errno)}") from error


def _advise(area: mmap.mmap, refused: list[str]) -> bool:
    try:
        if "[never]" in _THP.read_text():
            refused.append("transparent huge pages: switched off on this machine")
            return False
        area.madvise(mmap.MADV_HUGEPAGE)
        return True
    except OSError as error:
        refused.append(f"transparent huge pages: {_reason(error.errno)}")
        return False


def _free_reserved() -> int:
    try:
        return int(_RESERVED.read_text())
    except (OSError, ValueError):
        return 0


def _bind(start: int, size: int, nodes: tuple[int, ...], refused: list[str]) -> bool:
    """Tell the kernel where these pages shall lie: preferred, so a full node ends in slow memory, not in a kill."""
    if not all(0 <= node < _MAX_NODES for node in nodes):
        raise ValueError(f"nodes {nodes}; they are numbered 0 to {_MAX_NODES - 1}")
    mask = np.zeros(_MAX_NODES // 64, np.uint64)
    for node in nodes:
        mask[node // 64] |= np.uint64(1 << node % 64)
    mode = _PREFERRED if len(nodes) == 1 else _INTERLEAVE
    # The kernel takes one bit less than maxnode says.
    code = _call(0, start, size, mode, mask.ctypes.data, _MAX_NODES + 1, 0)
    if code:
        refused.append(f"memory on node {', '.join(map(str, nodes))} (mbind): {_reason(code)}")
    return not code


def bind(memory: np.ndarray, node: int, page: int = mmap.PAGESIZE) -> str:
    """Have the pages of this memory, not touched yet, lie on a node; why the kernel refused, or "".

    `page`: HUGE for reserved huge pages. A page at either end counts with the memory before it.
    """
    refused: list[str] = []
    first, end = (-(-at // page) * page for at in (memory.ctypes.data, memory.ctypes.data + memory.nbytes))
    if end > first:
        _bind(first, end - first, (node,), refused)
    return "".join(refused)


def node_of(address: int) -> int | None:
    """The node on which the page of this address lies (a page never touched is read in); None where nobody says."""
    node = ctypes.c_int(-1)
    code = _call(1, ctypes.addressof(node), 0, 0, address, _NODE_OF_ADDRESS)
    return None if code else node.value


def _call(which: int, *arguments: int) -> int:
    """The error number of mbind (0) or get_mempolicy (1); 0 where it went well."""
    if _CALLS is None:
        return errno.ENOSYS
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    failed = syscall(ctypes.c_long(_CALLS[which]), *(ctypes.c_ulong(argument) for argument in arguments))
    return ctypes.get_errno() if failed else 0


def _reason(code: int | None) -> str:
    why = {
        errno.EPERM: "forbidden here, by a container or a security policy",
        errno.ENOSYS: "unknown to this kernel",
        errno.EINVAL: "no such node for this process, or a kernel without NUMA",
    }
    return why.get(code or 0, os.strerror(code or 0))
