"""Weights on their way from a file into an arena: plan, units of rows, page cache, free memory."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cpu_kernels
from cpu_kernels import Matrix, interleave, weight_file
from cpu_kernels.matrix import load_format
from cpu_kernels.weight_file import ReadError, read_units, units, working_memory
from hetero.arena import arena_bytes, place, plan
from hetero.config import ModelConfig
from hetero.errors import FileError
from hetero.free_memory import free_memory
from hetero.gguf import GGUFFile, Tensor, open_gguf
from hetero.weight_reader import WeightReader
from tests.small_model import small_config, small_model


@pytest.fixture(scope="module")
def pool():
    with cpu_kernels.Pool(2) as pool:
        yield pool


def packed_file(tensors: dict[str, tuple[int, ...]]) -> GGUFFile:
    """F32 tensors of these shapes, one behind the other, without a file."""
    found, offset = {}, 0
    for name, shape in tensors.items():
        data = np.zeros((*shape[:-1], 4 * shape[-1]), np.uint8)
        found[name] = Tensor(name, shape, "F32", data, offset=offset)
        offset += data.size
    return GGUFFile((Path("model.gguf"),), {}, found, offset)


# The plan


def test_layouts() -> None:
    shapes = {
        "token_embd.weight": (20, 32), "output_norm.weight": (32,), "blk.0.attn_kv_b.weight": (2 * (16 + 32), 32),
        "blk.1.ffn_gate_exps.weight": (4, 17, 32), "output.weight": (20, 32), "blk.2.attn_q.weight": (16, 32),
    }  # fmt: skip
    config = replace(small_config(), nope_dim=16, value_dim=32, nextn_layers=1)  # two layers, and one left out
    slots = {slot.name: slot for slot in plan(packed_file(shapes), config)}
    assert {name: (slot.layout, slot.shape) for name, slot in slots.items()} == {
        "token_embd.weight": ("gguf", (20, 128)), "output_norm.weight": ("gguf", (128,)),
        "blk.0.attn_kv_b.weight": ("x16", (1, 6, 16 * 128)), "blk.1.ffn_gate_exps.weight": ("x16", (4, 2, 16 * 128)),
        "output.weight": ("x16", (1, 2, 16 * 128)),
    }  # fmt: skip
    starts = [slot.start for slot in slots.values()]
    assert starts == sorted(starts) and not any(start % 4096 for start in starts)
    assert arena_bytes(list(slots.values())) == starts[-1] + 2 * 16 * 128


def test_heads_that_are_not_whole_groups_stay_as_they_are() -> None:
    (slot,) = plan(packed_file({"blk.0.attn_kv_b.weight": (2 * (16 + 24), 32)}), replace(small_config(), value_dim=24))
    assert slot.layout == "gguf"


def test_tied_head_is_a_second_copy() -> None:
    slots = plan(packed_file({"token_embd.weight": (20, 32)}), small_config())
    assert [(slot.name, slot.layout) for slot in slots] == [("token_embd.weight", "gguf"), ("output.weight", "x16")]
    tensors = place(slots, np.zeros(arena_bytes(slots), np.uint8))
    assert tensors["output.weight"].shape == (20, 32) and tensors["output.weight"].name == "output.weight"


def test_slots_in_the_order_of_the_file() -> None:
    file = packed_file({"blk.0.a.weight": (16, 32), "blk.0.b.weight": (16, 32)})
    file.tensors = dict(reversed(file.tensors.items()))
    assert [slot.name for slot in plan(file, small_config())] == ["blk.0.a.weight", "blk.0.b.weight"]


# Units


@pytest.mark.parametrize("unit_bytes", [1, 5000, 1 << 20])
@pytest.mark.parametrize("shape", [(1, 16), (1, 40), (3, 17), (2, 1)])
@pytest.mark.parametrize("type", ["F32", "BF16", "Q8_0", "Q6_K"])
def test_rows_read_equal_rows_interleaved(type, shape, unit_bytes, pool, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(weight_file, "UNIT_BYTES", unit_bytes)
    form = load_format(type).FORMAT
    columns = form.VALUES * (3 if form.VALUES > 1 else 33)
    data = np.random.default_rng(0).integers(0, 256, (*shape, columns // form.VALUES * form.BYTES), np.uint8)
    (tmp_path / "weights").write_bytes(b"before" + data.tobytes())
    matrix = Matrix(data, type, columns)
    expected = interleave(pool, matrix).data
    out = np.zeros_like(expected)
    with (tmp_path / "weights").open("rb") as file:
        table = units(file.fileno(), 6, matrix, out)
        read_units(pool, table, working_memory(pool, table), out)
    assert np.array_equal(out, expected)
    groups = shape[0] * -(-shape[1] // 16)
    assert len(table) == (groups if unit_bytes == 1 else 1 if unit_bytes == 1 << 20 else len(table))


def test_bytes_as_they_are(pool, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(weight_file, "UNIT_BYTES", 100)
    data = np.arange(1234, dtype=np.int64).astype(np.uint8)
    (tmp_path / "weights").write_bytes(b"x" + data.tobytes())
    out = np.zeros_like(data)
    with (tmp_path / "weights").open("rb") as file:
        table = units(file.fileno(), 1, None, out)
        read_units(pool, table, working_memory(pool, table), out)
        assert np.array_equal(out, data) and len(table) == 13
        with pytest.raises(ReadError) as caught:
            read_units(pool, units(file.fileno(), 2, None, out), working_memory(pool, table), out)
        assert (caught.value.errno, caught.value.unit) == (0, 12), "one byte is missing in the last unit"
    with pytest.raises(ReadError) as caught:
        read_units(pool, units(-1, 0, None, out), working_memory(pool, table), out)
    assert caught.value.errno == errno.EBADF


def test_target_of_another_shape_is_refused(pool) -> None:
    matrix = Matrix(np.zeros((16, 128), np.uint8), "F32", 32)
    with pytest.raises(ValueError, match=r"out is uint8\[1, 2, 2048\] for 1 x 16 rows"):
        units(0, 0, matrix, np.zeros((1, 2, 2048), np.uint8))
    with pytest.raises(ValueError, match="needed is C-contiguous uint8"):
        units(0, 0, None, np.zeros(8, np.uint8)[::2])


# Reading a whole file


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    content = small_model()
    rest = np.random.default_rng(1).integers(0, 256, len(content), np.uint8).tobytes()
    with open_gguf_of(path, content) as file:
        start = min(tensor.offset for tensor in file.tensors.values())
    path.write_bytes(content[:start] + rest[start:])
    return path


def open_gguf_of(path: Path, content: bytes) -> GGUFFile:
    path.write_bytes(content)
    return open_gguf(path)


def test_offsets_are_those_of_the_bytes(small: Path) -> None:
    content = small.read_bytes()
    with open_gguf(small) as file:
        for tensor in file.tensors.values():
            assert content[tensor.offset : tensor.offset + tensor.nbytes] == tensor.data.tobytes()


def test_arena_holds_every_tensor(small: Path, pool) -> None:
    with open_gguf(small) as file:
        slots = plan(file, ModelConfig.from_gguf(file))
        arena = np.zeros(arena_bytes(slots), np.uint8)
        seen: list[tuple[str, int, int]] = []
        for _ in WeightReader(file, slots, pool, kept=0).fill(arena, lambda *progress: seen.append(progress)):
            pass
        for name, placed in place(slots, arena).items():
            source = file.tensors[name]
            expected = source.data
            if placed.layout == "x16":
                rows = source.data.reshape(-1, *source.data.shape[-2:])
                expected = interleave(pool, Matrix(rows, source.type, source.shape[-1])).data
            assert np.array_equal(placed.data, expected), name
        total = sum(slot.tensor.nbytes for slot in slots)
        assert seen[0] == ("reading weights", 0, total) and seen[-1] == ("reading weights", total, total)


def test_in_any_order(small: Path, pool, monkeypatch) -> None:
    """Windows that are in the page cache, every third one, come first; the last bytes of the file stay in it."""
    monkeypatch.setattr("hetero.weight_reader.WINDOW_UNITS", 1)
    monkeypatch.setattr(weight_file, "UNIT_BYTES", 4096)
    dropped: list[int] = []
    monkeypatch.setattr("hetero.weight_reader.drop", lambda file, start, size: dropped.append(start))
    monkeypatch.setattr("hetero.reading_order.is_cached", lambda window: window[0][1] // 64 % 3 == 0)
    with open_gguf(small) as file:
        slots = plan(file, ModelConfig.from_gguf(file))
        total = sum(slot.tensor.nbytes for slot in slots)
        arenas = []
        for order in (range, None):
            with monkeypatch.context() as patch:
                if order:
                    patch.setattr(
                        "hetero.weight_reader.reading_order", lambda windows: (i for i in range(len(windows)))
                    )
                arenas.append(np.zeros(arena_bytes(slots), np.uint8))
                dropped.clear()
                done = list(WeightReader(file, slots, pool, kept=total // 2).fill(arenas[-1], lambda *_: None))
                assert done == sorted(done) and done[-1] == total
                if order:
                    expected = [*dropped]
        assert np.array_equal(*arenas) and arenas[0].any()
        assert dropped != expected and sorted(dropped) == expected


@pytest.mark.parametrize("kept", [0, 2000, 1 << 20])
def test_pages_are_dropped_beyond_what_may_stay(kept: int, small: Path, pool, monkeypatch) -> None:
    monkeypatch.setattr("hetero.weight_reader.WINDOW_UNITS", 1)
    advised: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, advice: advised.append((start, size, advice)))
    with open_gguf(small) as file:
        slots = plan(file, ModelConfig.from_gguf(file))
        arena = np.zeros(arena_bytes(slots), np.uint8)
        done = list(WeightReader(file, slots, pool, kept).fill(arena, lambda *progress: None))
    dropped = sum(size for _, size, _ in advised)
    assert {advice for *_, advice in advised} <= {os.POSIX_FADV_DONTNEED}
    assert len(advised) == sum(at < done[-1] - kept for at in [0, *done[:-1]])
    assert done[-1] - kept <= dropped <= small.stat().st_size if kept < done[-1] else not advised


def test_file_cut_short_while_it_is_read(small: Path, pool, monkeypatch) -> None:
    monkeypatch.setattr("hetero.weight_reader.WINDOW_UNITS", 1)
    with open_gguf(small) as file:
        slots = plan(file, ModelConfig.from_gguf(file))
        reading = WeightReader(file, slots, pool, 0).fill(np.zeros(arena_bytes(slots), np.uint8), lambda *_: None)
        next(reading)
        os.truncate(small, small.stat().st_size - 100)
        with pytest.raises(FileError, match=r"small\.gguf cannot be read: it ends before its last tensor; .*; check"):
            list(reading)


@pytest.mark.parametrize("change", ["cut", "replaced", "removed"])
def test_file_that_is_not_the_one_that_was_opened(change: str, small: Path, pool) -> None:
    with open_gguf(small) as file:
        slots = plan(file, ModelConfig.from_gguf(file))
        content = small.read_bytes()
        match change:
            case "cut":
                os.truncate(small, len(content) - 100)
            case "replaced":
                (small.parent / "new").write_bytes(content)
                os.replace(small.parent / "new", small)
            case "removed":
                small.unlink()
        with pytest.raises(FileError, match=r"was changed while it was loaded|cannot open .*No such file"):
            next(WeightReader(file, slots, pool, 0).fill(np.zeros(arena_bytes(slots), np.uint8), lambda *_: None))


# Free memory


def cgroup(root: Path, group: str, files: dict[str, str]) -> None:
    (root / group).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / group / name).write_text(content + "\n")


@pytest.mark.parametrize(
    ("line", "group", "limit", "used", "stat", "free"),
    [
        ("0::/a/b", "a/b", ("memory.max", "1000"), ("memory.current", "700"), "anon 400\nactive_file 60", 360),
        ("0::/a/b", "a", ("memory.max", "1000"), ("memory.current", "700"), "inactive_file 50", 350),
        ("0::/a", "a", ("memory.max", "max"), ("memory.current", "700"), "", 5000),
        ("0::/a", "a", ("memory.max", "100"), ("memory.current", "700"), "", 0),
        ("0::/a", "a", ("memory.max", "99999"), ("memory.current", "1"), "", 5000),
        ("4:memory:/a", "memory/a", ("memory.limit_in_bytes", "1000"), ("memory.usage_in_bytes", "700"),
         "inactive_file 1\ntotal_inactive_file 50", 350),
        ("4:cpu:/a", "memory/a", ("memory.limit_in_bytes", "1000"), ("memory.usage_in_bytes", "700"), "", 5000),
    ],
)  # fmt: skip
def test_free_memory_within_a_cgroup(line, group, limit, used, stat, free, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=5000))
    (tmp_path / "cgroup").write_text(line + "\n")
    cgroup(tmp_path / "fs", group, dict([limit, used]) | {"memory.stat": stat})
    assert free_memory(tmp_path / "cgroup", tmp_path / "fs") == free


def test_free_memory_without_cgroups(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=5000))
    assert free_memory(tmp_path / "missing", tmp_path) == 5000
