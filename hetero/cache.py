"""The latent KV cache: a pool of 64-token pages per layer, and for each sequence a row of pages and their tokens.

576 values per token and layer (kv_lora + rope) instead of heads x (nope + rope + value): 40,960 for DeepSeek-V3.

A page is written by one sequence only. Once it is full and computed (`publish`) any number may read it, and whoever
starts with the same tokens finds it (`adopt`, hetero.prefixes), whether its writer still runs or has ended. Full pages
are never copied; where two texts part within a page, what they share of it is. What nobody holds is dropped, longest
unused first, when a sequence needs a page. There are as many pages as all sequences at their full length need, none of
them shared: a sequence that has its row can always go on to the end of the context.
"""

from typing import Any, Protocol

import numpy as np

from cpu_kernels import cache_layer
from cpu_kernels.cache import BLOCK, PAGE
from hetero.config import ModelConfig
from hetero.errors import RequestError, UnsupportedError
from hetero.prefixes import Node, PrefixIndex, common
from hetero.run_config import RunConfig


class Store(Protocol):
    """Where layers' caches lie, if not in numpy's memory."""

    def cache_layer(self, pages: int, kv: str, width: int) -> Any:
        """Zeros; its length is `pages`."""

    def copy_page(self, layer: Any, source: int, target: int) -> None:
        """All that page `source` holds, to page `target`."""


class LatentCache:
    """Room for `run.sequences` sequences of `context` tokens each. Pages are handed out as a sequence grows.

    Whether the memory holds it is for the plan to say (hetero.planning). UnsupportedError: not in this type.
    `elsewhere`: how many layers, the first ones, lie in another store, and that store.
    """

    def __init__(self, config: ModelConfig, run: RunConfig, context: int, elsewhere: tuple[int, Store] | None = None):
        self.context, rows = context, run.sequences
        pages = -(-context // PAGE)
        width = config.cache_width
        if run.kv == "q8_0" and width % BLOCK:
            raise UnsupportedError(
                f"kv q8_0 for a model with {width} cached values per token and layer",
                f"its blocks hold {BLOCK} values",
                "use --kv f16",
            )
        self.pages = pages * rows
        first, store = elsewhere or (0, None)
        stores = [store] * first + [None] * (config.layers - first)
        self.layers: list[Any] = [
            (store.cache_layer if store else cache_layer)(self.pages, run.kv, width) for store in stores
        ]
        self._copies = [store.copy_page if store else copy_page for store in stores]
        self.block_table = np.zeros((rows, pages), np.int32)
        self.lengths = np.zeros(rows, np.int32)  # tokens of each sequence
        self.free_pages = list(range(self.pages - 1, -1, -1))
        self.index = PrefixIndex()
        self._ids = np.zeros((rows, context), np.int32)
        self._ways: list[list[Node]] = [[] for _ in range(rows)]  # of each sequence the pages in the index, its first
        self._expanded = np.zeros((self.pages, PAGE), np.bool_)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def tokens(self, sequence: int) -> np.ndarray:
        """int32 [n], a view: what the sequence's pages hold."""
        return self._ids[sequence, : self.lengths[sequence]]

    def expanded(self, sequence: int) -> np.ndarray:
        """bool [n]: of each token whether it was computed among many, by expanded attention (hetero.attention).

        Both forms give the same up to rounding. These, and the tokens, determine what is cached to the bit.
        """
        pages = self.block_table[sequence, : -(-int(self.lengths[sequence]) // PAGE)]
        return self._expanded[pages].reshape(-1)[: self.lengths[sequence]]

    def adopt(self, sequence: int, ids: np.ndarray) -> int:
        """The sequence, which holds a beginning of `ids` (int32) or nothing, takes over what is found of them if that
        is more; its own goes into the index. Returns its length."""
        way, last, shared = match = self.index.find(ids)
        found = match.tokens
        if found <= self.lengths[sequence]:
            return int(self.lengths[sequence])
        self.index.hold(way)
        if last is not None and shared == last.tokens:
            self.index.remove(last)
            self.release(sequence)
            page = last.page
        else:
            self.release(sequence)  # before a page is asked for: it may need one of these
            page = -1 if last is None else self._copied(last.page, shared)
        table = [node.page for node in way] + ([] if last is None else [page])
        self._ways[sequence] = way
        self.block_table[sequence, : len(table)] = table
        self._ids[sequence, :found] = ids[:found]
        self.lengths[sequence] = found
        return found

    def _copied(self, source: int, tokens: int) -> int:
        """A page that begins with so many tokens of `source`, which may be the one that is dropped for it."""
        page = self._page()
        if page != source:
            for copy, layer in zip(self._copies, self.layers, strict=True):
                copy(layer, source, page)
            self._expanded[page, :tokens] = self._expanded[source, :tokens]
        return page

    def _page(self) -> int:
        return self.free_pages.pop() if self.free_pages else self.index.evict()

    def publish(self, sequence: int) -> None:
        """All tokens of the sequence have been computed: others may read those of its pages that are full."""
        way, table = self._ways[sequence], self.block_table[sequence]
        for at in range(len(way), int(self.lengths[sequence]) // PAGE):
            parent, page = way[-1] if way else self.index.root, int(table[at])
            ids = self._ids[sequence, at * PAGE : (at + 1) * PAGE].tobytes()
            twin = self._twin(parent, page, ids)
            if twin is None:
                way.append(self.index.add(parent, page, ids))
                continue
            self.index.hold([twin])
            way.append(twin)
            table[at] = twin.page
            self.free_pages.append(page)

    def _twin(self, parent: Node, page: int, ids: bytes) -> Node | None:
        """A node that holds the same values as this page: of the same tokens, computed in the same way."""
        same = parent.children.get(ids, ())
        return next((node for node in same if (self._expanded[node.page] == self._expanded[page]).all()), None)

    def release(self, sequence: int) -> None:
        """The sequence has ended; all its tokens have been computed. They stay until their pages are needed."""
        self.publish(sequence)
        way, length = self._ways[sequence], int(self.lengths[sequence])
        self._ways[sequence], self.lengths[sequence] = [], 0
        if length % PAGE:
            parent, rest = (
                way[-1] if way else self.index.root,
                self._ids[sequence, length // PAGE * PAGE : length].tobytes(),
            )
            self.free_pages += [self.index.remove(older) for older in tuple(parent.children.get(rest, ()))]
            self.index.add(parent, int(self.block_table[sequence, length // PAGE]), rest, holders=0)
        self.index.let_go(way)

    def keep_prefix(self, sequence: int, ids: list[int]) -> int:
        """Keeps what `ids` shares with the sequence's tokens, drops the rest; returns the number of tokens kept."""
        kept = common(self.tokens(sequence), np.asarray(ids, np.int32))
        self.truncate(sequence, kept)
        return kept

    def truncate(self, sequence: int, length: int) -> None:
        """Drops the tokens behind the first `length`. Pages in the index stay there, and are not cut in two."""
        way, held = self._ways[sequence], int(self.lengths[sequence])
        kept = min(-(-length // PAGE), len(way))
        if length < kept * PAGE:
            raise ValueError(f"sequence {sequence} is cut at {length}, in the middle of a page that others may read")
        freed = self.block_table[sequence, max(len(way), -(-length // PAGE)) : -(-held // PAGE)].tolist()
        dropped = way[kept:]
        # First: an interrupt in between may lose a page, but must not leave one with two owners.
        self.lengths[sequence] = min(length, held)
        del way[kept:]
        self.index.let_go(dropped)
        self.free_pages += freed

    def extend(self, sequence: int, ids: list[int] | np.ndarray, expanded: bool = False) -> np.ndarray:
        """Notes `ids` as the sequence's next tokens and finds their pages; returns their positions, int32 [T].

        `expanded`: how they will be computed.
        """
        start = int(self.lengths[sequence])
        end = start + len(ids)
        if end > self.context:
            raise RequestError(
                f"{end} tokens", f"the context holds {self.context}", "shorten the text or raise --context"
            )
        table = self.block_table[sequence]
        for page in range(-(-start // PAGE), -(-end // PAGE)):
            table[page] = self._page()
        self._ids[sequence, start:end] = ids
        self.lengths[sequence] = end
        positions = np.arange(start, end, dtype=np.int32)
        self._expanded[table[positions // PAGE], positions % PAGE] = expanded
        return positions


def copy_page(layer: np.ndarray, source: int, target: int) -> None:
    """All that page `source` holds, to page `target`."""
    layer[target] = layer[source]
