"""The cache's pages under several sequences, against a model of it that is naive: whole prefixes in a list."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cpu_kernels.cache import PAGE
from hetero.cache import LatentCache, Store
from hetero.prefixes import COPIED, Node, PrefixIndex, common
from hetero.run_config import RunConfig
from tests import plain_gpu
from tests.small_model import small_config

ROWS, PAGES = 3, 4
CONTEXT = PAGES * PAGE - 10
WORDS = [[word] * size for word, size in enumerate((PAGE, PAGE, 2 * PAGE, 40, 7, 1))]
Text = tuple[tuple[int, bool], ...]  # tokens, each with the way it was computed


def new_cache(rows: int = ROWS, context: int = CONTEXT, store: Store | None = None) -> LatentCache:
    layers = (1, store) if store else None
    return LatentCache(replace(small_config(), layers=1), RunConfig(sequences=rows, kv="f32"), context, layers)


def check(index: PrefixIndex) -> None:
    """AssertionError where the tree contradicts itself."""
    order = {node: at for at, node in enumerate(index.unheld)}
    pages, shared, stack = [], 0, [index.root]
    while stack:
        node = stack.pop()
        children = [child for same in node.children.values() for child in same]
        stack += children
        if node is index.root:
            continue
        assert all(child.parent is node and child.holders <= node.holders for child in children)
        assert node.tokens == PAGE or not (children or node.holders), "only full pages are shared"
        assert (node in order) == (not node.holders), "what nobody holds is what may be dropped"
        assert all(order[child] < order[node] for child in children if node in order), "leaves go first"
        pages.append(node.page)
        shared += node.holders > 1
    assert len(pages) == len(set(pages)) == index.nodes and len(order) <= index.nodes and shared == index.shared


@dataclass
class Entry:
    """A page of the index: all that is cached up to its end."""

    text: Text
    used: int = 0


class Machine(RuleBasedStateMachine):
    """`written`: what a forward pass would have written, for each slot the whole text up to there."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = new_cache(store=self)
        self.written: dict[tuple[int, int], Text] = {}
        self.rows: list[Text | None] = [None] * ROWS  # None: no sequence
        self.plans: list[list[int]] = [[] for _ in range(ROWS)]  # prompts
        self.entries: list[Entry] = []
        self.time = 0

    # Where the cache's values lie
    def cache_layer(self, pages: int, kv: str, width: int) -> None:
        assert pages == ROWS * PAGES

    def copy_page(self, layer: None, source: int, target: int) -> None:
        for at in range(PAGE):
            if (source, at) in self.written:
                self.written[target, at] = self.written[source, at]

    # What the naive model knows
    def held(self, entry: Entry) -> bool:
        return len(entry.text) % PAGE == 0 and any(
            row is not None and row[: len(entry.text)] == entry.text for row in self.rows
        )

    def found(self, ids: list[int]) -> int:
        best = 0
        for entry in self.entries:
            size = int(common(np.array([id for id, _ in entry.text]), np.array(ids)))
            before = (len(entry.text) - 1) // PAGE * PAGE
            if size == len(entry.text) or size - before >= COPIED:
                best = max(best, size)
        return best

    def pages_in_use(self) -> int:
        own = sum(len(row) % PAGE > 0 for row in self.rows if row is not None)
        return own + len(self.entries)

    def make_room(self, pages: int) -> None:
        """The longest unused go; of those that were used together the longest text."""
        while self.pages_in_use() + pages > ROWS * PAGES:
            idle = [entry for entry in self.entries if not self.held(entry)]
            self.entries.remove(min(idle, key=lambda entry: (entry.used, -len(entry.text))))

    def remember(self, text: Text) -> None:
        for end in range(PAGE, len(text) + 1, PAGE):
            if not any(entry.text == text[:end] for entry in self.entries):
                self.entries.append(Entry(text[:end]))

    def touch(self, text: Text) -> None:
        """Its pages. Where another text ended within one of them, that is a page of its own, which nobody used."""
        self.time += 1
        for entry in self.entries:
            if text[: len(entry.text)] == entry.text and (entry.text == text or len(entry.text) % PAGE == 0):
                entry.used = self.time

    # What happens
    def row_that(self, runs: bool, pick: int) -> int:
        rows = [row for row in range(ROWS) if (self.rows[row] is not None) == runs]
        return rows[pick % len(rows)]

    def adopt(self, row: int, ids: list[int]) -> None:
        before, found = self.rows[row] or (), self.found(ids)
        length = self.cache.adopt(row, np.array(ids, np.int32))
        assert length == max(found, len(before)), "as much as there is"
        if length > len(before):
            text: Text = tuple(zip(ids[:length], self.cache.expanded(row).tolist(), strict=True))
            self.entries = [entry for entry in self.entries if entry.text != text or not length % PAGE]  # taken over
            self.rows[row] = text
            self.end(before)
            self.make_room(0)  # for what was copied
        assert self.cache.index.find(np.array(ids, np.int32)).tokens == self.found(ids)

    def end(self, text: Text) -> None:
        self.remember(text)
        if len(text) % PAGE:
            ids = [id for id, _ in text]
            self.entries = [
                e for e in self.entries if len(e.text) != len(text) or not self.same_tail(e.text, text, ids)
            ]
            self.entries.append(Entry(text))
        self.touch(text)

    @staticmethod
    def same_tail(a: Text, b: Text, ids: list[int]) -> bool:
        whole = len(b) // PAGE * PAGE
        return a[:whole] == b[:whole] and [id for id, _ in a] == ids

    @precondition(lambda self: None in self.rows)
    @rule(pick=st.integers(0, 5), words=st.lists(st.sampled_from(range(len(WORDS))), min_size=1, max_size=6))
    def start(self, pick: int, words: list[int]) -> None:
        row = self.row_that(False, pick)
        self.plans[row] = [id for word in words for id in WORDS[word]][:CONTEXT]
        self.rows[row] = ()
        self.adopt(row, self.plans[row])

    @precondition(lambda self: any(row is not None for row in self.rows))
    @rule(pick=st.integers(0, 5))
    def look_again(self, pick: int) -> None:
        row = self.row_that(True, pick)
        if len(self.rows[row] or ()) < len(self.plans[row]):
            self.adopt(row, self.plans[row])

    @precondition(lambda self: any(row is not None for row in self.rows))
    @rule(pick=st.integers(0, 5), size=st.integers(1, 150), expanded=st.booleans(), fails=st.booleans())
    def go_on(self, pick: int, size: int, expanded: bool, fails: bool) -> None:
        """Through the prompt, then with other tokens."""
        row = self.row_that(True, pick)
        text: Any = self.rows[row]
        ids = (self.plans[row] + [9] * CONTEXT)[len(text) : min(len(text) + size, CONTEXT)]
        if not ids:
            return
        self.make_room(-(-(len(text) + len(ids)) // PAGE) - -(-len(text) // PAGE))
        positions = self.cache.extend(row, ids, expanded)
        assert positions.tolist() == [*range(len(text), len(text) + len(ids))] and positions.dtype == np.int32
        whole = text + tuple((id, expanded) for id in ids)
        for at in positions.tolist():
            self.written[int(self.cache.block_table[row, at // PAGE]), at % PAGE] = whole[: at + 1]
        if fails:
            self.cache.truncate(row, len(text))
        else:
            self.cache.publish(row)
            self.rows[row] = whole
            self.remember(whole)

    @precondition(lambda self: any(row is not None for row in self.rows))
    @rule(pick=st.integers(0, 5))
    def release(self, pick: int) -> None:
        row = self.row_that(True, pick)
        text: Any = self.rows[row]
        self.cache.release(row)
        self.rows[row] = None
        self.end(text)

    @invariant()
    def every_sequence_reads_its_own_tokens(self) -> None:
        for row, text in enumerate(self.rows):
            assert self.cache.tokens(row).tolist() == [id for id, _ in text or ()]
            assert self.cache.expanded(row).tolist() == [expanded for _, expanded in text or ()]
            for at in range(len(text or ())):
                slot = int(self.cache.block_table[row, at // PAGE]), at % PAGE
                assert self.written[slot] == (text or ())[: at + 1]

    @invariant()
    def no_page_is_lost_or_has_two_places(self) -> None:
        check(self.cache.index)
        own = [
            int(self.cache.block_table[row, len(text) // PAGE])
            for row, text in enumerate(self.rows)
            if text is not None and len(text) % PAGE
        ]
        indexed, stack = [], [self.cache.index.root]
        while stack:
            children = [child for same in stack.pop().children.values() for child in same]
            indexed += [child.page for child in children]
            stack += children
        assert sorted([*own, *indexed, *self.cache.free_pages]) == list(range(ROWS * PAGES))
        assert len(indexed) == len(self.entries), "what is dropped is what was not used for longest"


BRIEF = settings(max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))


def test_pages_are_shared_kept_and_dropped_as_they_should() -> None:
    run_state_machine_as_test(Machine, settings=BRIEF)


@pytest.mark.soak
def test_pages_are_shared_kept_and_dropped_as_they_should_for_long() -> None:
    run_state_machine_as_test(Machine, settings=settings(BRIEF, max_examples=3000, stateful_step_count=60))


def computed(cache: LatentCache, row: int, ids: list[int]) -> None:
    cache.extend(row, ids)
    cache.publish(row)


def test_pages_of_a_running_sequence_are_shared_without_a_copy() -> None:
    cache = new_cache()
    ids = list(range(150))
    computed(cache, 0, ids)
    assert cache.adopt(1, np.array([*ids[:140], 7], np.int32)) == 2 * PAGE
    assert (cache.block_table[0, :2] == cache.block_table[1, :2]).all() and cache.index.shared == 2
    cache.release(0)
    assert cache.index.shared == 0 and cache.tokens(1).tolist() == ids[: 2 * PAGE]


def test_what_is_not_computed_is_not_found() -> None:
    cache = new_cache()
    cache.extend(0, list(range(150)))
    assert cache.index.find(np.arange(150, dtype=np.int32)).tokens == 0


def test_a_partly_filled_last_page_is_taken_over_by_one() -> None:
    cache = new_cache()
    ids = list(range(150))
    computed(cache, 0, ids)
    page = cache.block_table[0, 2]
    cache.release(0)
    assert cache.adopt(1, np.array([*ids, 5, 6], np.int32)) == 150
    assert cache.block_table[1, 2] == page
    assert cache.adopt(2, np.array([*ids, 5, 6], np.int32)) == 2 * PAGE
    cache.release(2)
    cache.release(1)
    assert cache.index.find(np.array(ids, np.int32)).tokens == 150


def test_texts_that_part_within_a_page_both_keep_what_they_share() -> None:
    cache = new_cache()
    for expanded, ids in ((True, range(80)), (False, range(80, 150))):
        cache.extend(0, list(ids), expanded)
    cache.publish(0)
    layer, first = cache.layers[0], cache.block_table[0]
    layer[:] = np.random.default_rng(1).standard_normal(layer.shape)
    parting = np.array([*range(90), 500, 501], np.int32)
    assert cache.adopt(1, parting) == 90, "of a full page that its writer still holds"
    page = cache.block_table[1, 1]
    assert cache.block_table[1, 0] == first[0] and page != first[1]
    np.testing.assert_array_equal(layer[page, : 90 - PAGE], layer[first[1], : 90 - PAGE])
    assert cache.expanded(1).tolist() == [True] * 80 + [False] * 10
    cache.release(0)
    late = np.array([*range(148), 500], np.int32)
    assert cache.adopt(0, late) == 148, "of a page that is partly filled"
    assert cache.index.find(np.arange(150, dtype=np.int32)).tokens == 150


def test_few_tokens_are_not_worth_a_page() -> None:
    cache = new_cache()
    computed(cache, 0, list(range(PAGE + COPIED)))
    cache.release(0)
    for shared in (COPIED - 1, PAGE + COPIED - 1):
        assert cache.index.find(np.array([*range(shared), 500], np.int32)).tokens == shared // PAGE * PAGE


def test_a_page_is_copied_where_none_is_free() -> None:
    """The one that is dropped for it may be the one that is copied."""
    cache = new_cache(rows=1, context=2 * PAGE)
    computed(cache, 0, list(range(PAGE + 40)))
    cache.release(0)
    layer = cache.layers[0]
    layer[:] = np.arange(2)[:, None, None]
    assert not cache.free_pages
    assert cache.adopt(0, np.array([*range(PAGE + 30), 500], np.int32)) == PAGE + 30
    assert sorted(cache.block_table[0].tolist()) == [0, 1] and cache.index.nodes == 1
    check(cache.index)


def test_the_same_text_twice_is_kept_once() -> None:
    cache = new_cache(rows=2)
    for row in (0, 1):
        cache.extend(row, list(range(150)))
    for row in (0, 1):
        cache.publish(row)
    assert (cache.block_table[0, :2] == cache.block_table[1, :2]).all()
    for row in (0, 1):
        cache.release(row)
    assert cache.index.nodes == 3 and len(cache.free_pages) == 2 * PAGES - 3


def test_values_that_came_about_in_another_way_are_another_text() -> None:
    cache = new_cache(rows=2)
    for row in (0, 1):
        cache.extend(row, list(range(PAGE)), expanded=row == 1)
        cache.publish(row)
    assert cache.block_table[0, 0] != cache.block_table[1, 0] and cache.index.nodes == 2
    assert cache.expanded(1).all() and not cache.expanded(0).any()


def test_a_page_that_others_may_read_is_not_cut() -> None:
    cache = new_cache()
    computed(cache, 0, list(range(150)))
    with pytest.raises(ValueError, match="cut at 100, in the middle of a page"):
        cache.truncate(0, 100)
    assert cache.tokens(0).tolist() == list(range(150))
    cache.truncate(0, PAGE)
    assert cache.index.find(np.arange(150, dtype=np.int32)).tokens == 2 * PAGE, "what was computed stays"


def test_costs_are_those_of_the_prefix_at_hand() -> None:
    """Thousands of other texts make a lookup no longer."""
    looked: list[bytes] = []

    class Watched(dict[bytes, list[Node]]):
        def get(self, key: bytes, default: Any = None) -> Any:
            looked.append(key)
            return super().get(key, default)

    index = PrefixIndex()
    index.root.children = Watched()
    for page in range(5000):
        index.add(index.root, page, np.full(PAGE, page, np.int32).tobytes(), holders=0)
    assert [node.page for node in index.find(np.full(2 * PAGE, 4321, np.int32)).way] == [4321]
    parting = index.find(np.array([4321] * 20 + [1], np.int32))
    assert not parting.way and parting.last is not None and (parting.last.page, parting.shared) == (4321, 20)
    assert len(looked) <= 4


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_copies_on_both_sides(kv: Any) -> None:
    """A layer in the GPU's place, one on the CPU: every plane of a page is copied."""
    config = replace(small_config(), layers=2, kv_lora_rank=96, rope=replace(small_config().rope, dimension=32))
    cache = LatentCache(config, RunConfig(sequences=ROWS, kv=kv), CONTEXT, (1, plain_gpu.plain_side()))
    rng, (there, here) = np.random.default_rng(2), cache.layers
    here[:] = rng.integers(0, 100, here.shape)
    for plane in (there.values, there.scales):
        if plane is not None:
            plane[:] = torch.from_numpy(rng.integers(0, 100, plane.shape))
    computed(cache, 0, list(range(100)))
    cache.release(0)
    source = cache.index.find(np.arange(100, dtype=np.int32)).last
    assert cache.adopt(1, np.array([*range(90), 500], np.int32)) == 90 and source is not None
    page = cache.block_table[1, 1]
    for blocks in (here, there.blocks()):
        assert page != source.page and blocks[page].any()
        np.testing.assert_array_equal(blocks[page], blocks[source.page])
