"""Networks split over the nodes of a pool, virtual ones on one real node: same results, one copy, own memory only."""

import os

import numpy as np
import pytest
from numba import cfunc, types

from cpu_kernels import Matrix, Pool, ffn, interleave, linear, linear_heads, routed_experts, topology
from cpu_kernels.atomic import fetch_add, store_i64, thread_identity
from cpu_kernels.gated import Gated, hidden_ranges
from cpu_kernels.matrix import MULTIPLY
from cpu_kernels.pages import Placement
from cpu_kernels.product import node_groups
from tests.random_weights import random_matrix

EXPERTS, HIDDEN, COLUMNS, USED = 6, 1024, 512, 3
TYPES = [("Q4_K", "Q4_K", "Q6_K"), ("Q4_K", "Q4_K", "Q5_0"), ("Q8_0", "F16", "F32")]
# A sum in another order. As elsewhere: one 8-bit code may fall on the other side of the middle; here none does, because
# hidden values are the same bits.
TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def one_node(monkeypatch):
    """A real node with CPUs enough, wherever the tests run."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    monkeypatch.setattr(topology, "nodes", lambda: (topology.Node(0, cpus * 4, 0),))


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def network(names, rng, experts=EXPERTS, hidden=HIDDEN) -> tuple[Matrix, Matrix, Matrix]:
    shapes = [(experts, hidden, COLUMNS)] * 2 + [(experts, COLUMNS, hidden)]
    gate, up, down = (random_matrix(type, shape, rng)[0] for type, shape in zip(names, shapes, strict=True))
    return gate, up, down


def inputs(rng, tokens, experts=EXPERTS):
    ids = np.array([rng.permutation(experts)[:USED] for _ in range(tokens)], np.int32)
    return rng.standard_normal((tokens, COLUMNS), np.float32), ids, rng.random((tokens, USED), np.float32)


def assert_same(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(initial=1e-30))


@pytest.mark.parametrize(("threads", "nodes"), [(1, 1), (2, 2), (3, 2), (5, 2), (4, 4), (7, 4)])
@pytest.mark.parametrize("names", TYPES)
def test_split_experts_are_the_unsplit_ones(rng, names, threads, nodes):
    routed, shared = network(names, rng), network(names, rng, 1, 512)
    given = [inputs(rng, tokens) for tokens in (1, 2, 5, 8, 40)]
    with Pool(1) as pool:
        expected = [routed_experts(pool, routed, *some, shared, some[0].copy()) for some in given]
    with Pool(threads, nodes=nodes) as pool:
        for layout in ("gguf", "x16"):
            parts = [Gated.split(pool, *matrices) for matrices in (routed, shared)]
            if layout == "x16":
                parts = [part.interleaved(pool)[0] for part in parts]
            assert [len(part.parts) for part in parts] == [nodes, nodes]
            for some, whole in zip(given, expected, strict=True):
                residual = some[0].copy()
                got = routed_experts(pool, parts[0], *some, parts[1], residual, residual)
                assert got is residual
                if nodes == 1:
                    np.testing.assert_array_equal(got, whole)
                else:
                    assert_same(got, whole)


@pytest.mark.parametrize(("hidden", "down"), [(32, "Q8_0"), (256, "Q4_K"), (20, "F16")])
@pytest.mark.parametrize("nodes", [2, 4])
def test_networks_too_small_to_split_are_dealt_out(rng, nodes, hidden, down):
    routed, given = network(("F32", "Q8_0", down), rng, hidden=hidden), inputs(rng, 9)
    shared = network(("Q8_0", "Q8_0", "F32"), rng, 1, 7)
    with Pool(1) as pool:
        expected = routed_experts(pool, routed, *given, shared)
    with Pool(nodes + 1, nodes=nodes) as pool:
        split = Gated.split(pool, *routed)
        assert [part.gate.count for part in split.parts] == [len(range(i, EXPERTS, nodes)) for i in range(nodes)]
        for turn in range(nodes + 1):
            single = Gated.split(pool, *shared, turn=turn)
            assert [part is not None for part in single.parts] == [i == turn % nodes for i in range(nodes)]
            assert_same(routed_experts(pool, split, *given, single), expected)


def test_results_repeat_and_do_not_depend_on_threads_or_other_columns(rng):
    routed, (x, ids, weights) = network(TYPES[0], rng), inputs(rng, 40)
    outcomes = set()
    for threads in (2, 4, 6):
        with Pool(threads, nodes=2) as pool:
            split = Gated.split(pool, *routed)
            whole = routed_experts(pool, split, x, ids, weights)
            outcomes |= {whole.tobytes(), routed_experts(pool, split, x, ids, weights).tobytes()}
            for part in (slice(0, 1), slice(7, 9), slice(3, 11)):
                some = routed_experts(pool, split, x[part], ids[part], weights[part])
                np.testing.assert_array_equal(some, whole[part])
    assert len(outcomes) == 1


def test_a_network_in_one_part_runs_on_a_pool_of_several_nodes(rng):
    routed, given = network(TYPES[0], rng), inputs(rng, 3)
    with Pool(1) as pool:
        expected = routed_experts(pool, routed, *given)
    with Pool(3, nodes=2) as pool:
        np.testing.assert_array_equal(routed_experts(pool, routed, *given), expected)


def test_hidden_values_are_shared_out_by_threads_in_whole_blocks():
    with Pool(3, nodes=2) as pool:
        assert hidden_ranges(pool, 2048, "Q4_K") == [(0, 1280), (1280, 2048)]
        assert hidden_ranges(pool, 1408, "Q5_0") == [(0, 928), (928, 1408)]
        assert hidden_ranges(pool, 200, "F16") == [(0, 128), (128, 200)]
        assert hidden_ranges(pool, 256, "Q4_K") == []


def test_parts_that_do_not_fit_the_pool_are_refused(rng):
    routed, shared, given = network(TYPES[0], rng), network(TYPES[0], rng, 1), inputs(rng, 2)
    with Pool(2, nodes=2) as two, Pool(1) as one:
        split = Gated.split(two, *routed)
        for pool, networks in ((one, (split,)), (two, (split, shared)), (two, (routed, Gated.split(two, *shared)))):
            with pytest.raises(ValueError, match="one for each node of the pool"):
                routed_experts(pool, networks[0], *given, *networks[1:])
        with pytest.raises(ValueError, match="in the layout of the file, not in x16"):
            Gated.split(two, *(interleave(two, w) for w in routed))


_LOG = np.zeros((4096, 3), np.int64)  # row 0: how many; then who multiplied which groups: (thread, weights, bytes)
_LOG_AT = _LOG.ctypes.data


@cfunc(types.void(*[types.int64] * 7), nopython=True)
def _spy(weights, groups, blocks, columns, x_list, y_list, y_offset):
    """In the place of a format's kernel."""
    at = _LOG_AT + 24 * (1 + fetch_add(_LOG_AT, 1))
    store_i64(at, thread_identity())
    store_i64(at + 8, weights)
    store_i64(at + 16, groups)


@cfunc(types.void(*[types.int64] * 3), nopython=True)
def _identify(arguments, thread, threads):
    store_i64(arguments + 8 * thread, thread_identity())


def watched(pool: Pool, call, matrices) -> list[tuple[int, int, int]]:
    """What each of the pool's nodes reads of the matrices during the call: (node, first address, groups)."""
    identities = np.zeros(pool.threads, np.int64)
    pool.run(_identify.address, identities)
    for w in matrices:
        w.descriptor[MULTIPLY // 8] = _spy.address
    _LOG[0, 0] = 0
    call()
    nodes = dict(zip(identities.tolist(), pool.node_of_thread, strict=True))
    return [(nodes[thread], at, groups) for thread, at, groups in _LOG[1 : 1 + _LOG[0, 0]].tolist()]


def groups_read(reads, memory: np.ndarray, group_bytes: int) -> list[tuple[int, int]]:
    """(group, node) for each group of 16 rows read from this memory, sorted."""
    start = memory.ctypes.data
    inside = [(node, at, groups) for node, at, groups in reads if start <= at < start + memory.nbytes]
    return sorted(((at - start) // group_bytes + i, node) for node, at, groups in inside for i in range(groups))


@pytest.mark.parametrize(("threads", "nodes"), [(2, 2), (5, 2), (4, 4)])
def test_nodes_read_all_of_their_own_memory_and_nothing_else(rng, threads, nodes):
    (x, ids, weights), routed, shared = inputs(rng, 1), network(TYPES[0], rng), network(TYPES[1], rng, 1)
    with Pool(threads, nodes=nodes) as pool:
        parts = [Gated.split(pool, *matrices).interleaved(pool)[0] for matrices in (routed, shared)]
        matrices = parts[0].matrices + parts[1].matrices
        reads = watched(pool, lambda: routed_experts(pool, parts[0], x, ids, weights, parts[1]), matrices)
        total = 0
        for gated, experts in zip(parts, (ids[0], [0]), strict=True):
            for node, part in enumerate(gated.parts):
                for w in part[:3]:
                    each = w.data.shape[1]
                    groups = sorted(expert * each + group for expert in experts for group in range(each))
                    found = groups_read(reads, w.data, w.data.shape[2])
                    assert found == [(group, node) for group in groups]
                    total += len(found)
        assert total == sum(groups for _, _, groups in reads)


def test_rows_of_a_matrix_are_read_by_their_node(rng):
    one, heads = random_matrix("Q4_K", (1000, 256), rng)[0], random_matrix("Q8_0", (5, 48, 64), rng)[0]
    x = rng.standard_normal((2, 256), np.float32)
    x_heads = rng.standard_normal((2, 5, 64), np.float32)
    with Pool(1) as pool:
        expected = linear(pool, [one, one], x), linear_heads(pool, heads, x_heads)
    for threads, nodes in ((2, 2), (3, 2), (7, 4)):
        with Pool(threads, nodes=nodes) as pool:
            np.testing.assert_array_equal(linear(pool, [one, one], x), expected[0])
            np.testing.assert_array_equal(linear_heads(pool, heads, x_heads), expected[1])
            for matrix, verb, given in ((one, linear, x), (heads, linear_heads, x_heads)):
                w = interleave(pool, matrix)
                reads = watched(pool, lambda v=verb, w=w, given=given: v(pool, w, given), [w])
                shares = node_groups(pool, w.data.shape[0] * w.data.shape[1])
                owners = [(group, node) for node, share in enumerate(shares) for group in range(*share)]
                assert groups_read(reads, w.data, w.data.shape[2]) == owners


def test_the_machine_holds_one_copy(rng, monkeypatch):
    asked = []

    def allocate(size, node=None, huge=True):
        asked.append((size, node))
        return np.zeros(size, np.uint8), Placement((node,), "small")

    monkeypatch.setattr("cpu_kernels.gated.allocate", allocate)
    routed = network(TYPES[0], rng)
    with Pool(3, nodes=2) as pool:
        split, placements = Gated.split(pool, *routed).interleaved(pool)
        assert sum(size for size, _ in asked) == split.nbytes == sum(w.nbytes for w in routed)
        assert [size for size, _ in asked] == [w.nbytes for w in split.matrices]
        assert [node for _, node in asked] == [pool.nodes[i].id for i in (0, 0, 0, 1, 1, 1)]
        assert placements == [Placement((0,), "small")] * 6


def test_a_dense_network(rng):
    dense, x = network(("Q6_K", "Q5_0", "Q8_0"), rng, 1), rng.standard_normal((3, COLUMNS), np.float32)
    with Pool(1) as pool:
        expected = ffn(pool, dense, x, x.copy())
    with Pool(2, nodes=2) as pool:
        assert_same(ffn(pool, Gated.split(pool, *dense), x, x.copy()), expected)
