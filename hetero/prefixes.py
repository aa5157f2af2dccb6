"""Which pages of the cache hold which tokens: a tree by prefix over all sequences, running and ended.

A node is a page, its children are pages that go on after it. A page that is full and computed enters the tree and is
not written again while it is there: any number of sequences may hold it. The partly filled last page of a sequence
that ended enters as a leaf; who goes on after all of its tokens takes it out of the tree and writes into it, and who
goes on after the first tokens of any page copies them.
Tokens that were computed in different ways (hetero.cache) have several nodes: their values are not mixed up.

What nobody holds is kept until its page is needed. A sequence holds all the way to its last page, and lets go of the
last one first, so the page that was let go first is never one that others go on after.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from cpu_kernels.cache import PAGE

# Tokens that are worth a page of their own, copied. Every prompt of a model begins with the same few.
COPIED = 16
SIZE = 4  # bytes of a token


class Node:
    """A page. `ids`: int32 tokens as bytes, fewer than PAGE in a leaf that may be taken over."""

    __slots__ = ("children", "holders", "ids", "ordered", "page", "parent")

    def __init__(self, page: int, parent: "Node | None", ids: bytes):
        self.page, self.parent, self.ids = page, parent, ids
        self.children: dict[bytes, list[Node]] = {}  # by their tokens
        self.ordered: list[bytes] = []  # keys of `children`: next to where a text would be is what begins most like it
        self.holders = 0  # sequences

    @property
    def tokens(self) -> int:
        return len(self.ids) // SIZE

    def nearest(self, ids: bytes) -> "tuple[int, Node | None]":
        """Of the children the one that shares most of its first tokens with `ids`, and how many: at least COPIED, or
        all that it has. Where several do, one that has no others."""
        at = bisect_left(self.ordered, ids)
        near = ((common(tokens_of(ids), tokens_of(key)), key) for key in self.ordered[max(at - 1, 0) : at + 1])
        shared, key = max(near, default=(0, b""))
        for size in range(shared, 0, -1):
            if tails := self.children.get(ids[: size * SIZE]):
                return size, tails[0]
            if size >= COPIED:
                return size, self.children[key][0]
        return 0, None


class Match(NamedTuple):
    """What is found of a text."""

    way: list[Node]  # full pages, from the first one on
    last: Node | None  # one that goes on after them as the text does,
    shared: int  # for so many tokens: all that it has, if they are fewer than COPIED, and never a full page's

    @property
    def tokens(self) -> int:
        return len(self.way) * PAGE + self.shared


class PrefixIndex:
    """Costs are per page of the prefix at hand, whatever else is there, but for a binary search."""

    def __init__(self) -> None:
        self.root = Node(-1, None, b"")
        self.unheld: OrderedDict[Node, None] = OrderedDict()  # longest unused first
        self.nodes = 0
        self.shared = 0  # nodes with two or more holders
        self.evicted = 0  # pages, so far

    def find(self, ids: np.ndarray) -> Match:
        """The most that is cached of `ids` (int32)."""
        content, ends, depth = ids.astype(np.int32).tobytes(), [self.root], 0
        while True:
            key = content[SIZE * PAGE * depth : SIZE * PAGE * (depth + 1)]
            whole = len(key) == SIZE * PAGE
            following = [child for node in ends for child in node.children.get(key, ())] if whole else []
            if not following:
                break
            ends, depth = following, depth + 1
        shared, last = max((node.nearest(key) for node in ends), key=lambda found: found[0])
        if last is None:
            return Match(way_to(ends[0]), None, 0)
        return Match(way_to(last)[:-1], last, shared)

    def add(self, parent: Node, page: int, ids: bytes, holders: int = 1) -> Node:
        """With no holder it is the one that was used last."""
        node = Node(page, parent, ids)
        if ids not in parent.children:
            insort(parent.ordered, ids)
        parent.children.setdefault(ids, []).append(node)
        node.holders = holders
        self.nodes += 1
        if not holders:
            self.unheld[node] = None
        return node

    def hold(self, way: list[Node]) -> None:
        for node in way:
            if not node.holders:
                del self.unheld[node]
            node.holders += 1
            self.shared += node.holders == 2

    def let_go(self, way: list[Node]) -> None:
        """`way`: to the last node that the sequence holds, or an end of it."""
        for node in reversed(way):
            node.holders -= 1
            self.shared -= node.holders == 1
            if not node.holders:
                self.unheld[node] = None

    def remove(self, node: Node) -> int:
        """Of a leaf that nobody holds, or that only the caller does, its page: it is the caller's."""
        assert node.parent is not None and not node.children and node.holders <= 1, "others need that page"
        siblings = node.parent.children[node.ids]
        siblings.remove(node)
        if not siblings:
            del node.parent.children[node.ids]
            del node.parent.ordered[bisect_left(node.parent.ordered, node.ids)]
        self.unheld.pop(node, None)
        self.nodes -= 1
        return node.page

    def evict(self) -> int:
        """The page of the node that was not used for longest. There must be one that nobody holds."""
        self.evicted += 1
        return self.remove(next(iter(self.unheld)))


def way_to(node: Node) -> list[Node]:
    """From the first page of the text to this one; empty for the root."""
    way = []
    while node.parent is not None:
        way.append(node)
        node = node.parent
    way.reverse()
    return way


def tokens_of(ids: bytes) -> np.ndarray:
    return np.frombuffer(ids, np.int32)


def common(a: np.ndarray, b: np.ndarray) -> int:
    """How many elements both begin with."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
