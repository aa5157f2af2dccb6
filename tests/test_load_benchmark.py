"""`benchmarks.load`: what each start stands beside, and the table made from it."""

import json
import sys
from pathlib import Path
from time import monotonic

import pytest

from benchmarks import floors, load, report
from hetero import demo
from hetero.gguf import open_gguf

MiB = 1 << 20


def test_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything but processes of their own and the time that a host needs."""
    monkeypatch.setattr(load, "MEMORY_SAMPLE", 8 * MiB)
    monkeypatch.setattr(load, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(load, "start_apart", lambda path, run: load.start(path, run, monotonic()))
    path, cache = str(demo.path()), str(tmp_path / "cache")
    arguments = ["load", path, "--rounds", "1", "--weights-cache", cache, "--threads", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    load.main()
    document = json.loads(capsys.readouterr().out)
    assert document.keys() >= {"model", "threads", "machine", "versions", "commit", "date"}
    size = demo.path().stat().st_size
    with open_gguf(path) as file:
        weights, count = sum(tensor.nbytes for tensor in file.tensors.values()), len(file.tensors)
    rows = {row["case"]: row for row in document["results"]}
    assert list(rows) == ["memory", "mmap", "cache"]
    assert rows["memory"]["bytes"] == rows["mmap"]["bytes"] == size
    for row in rows.values():
        assert 0 < row["ready_seconds"] < row["first_token_seconds"] and row["rounds"][0].items() <= row.items()
        assert row["cached_bytes"] <= row["bytes"] and row["beside_weights_bytes"] > 0
        from_disk = (row["bytes"] - row["cached_bytes"]) / row["disk_bytes_per_second"]
        from_host = row["floor_seconds"] - from_disk
        assert row["overlapped_floor_seconds"] == pytest.approx(max(from_disk, from_host))
        if row["case"] == "memory":
            arena = from_host * row["new_memory_bytes_per_second"]
            assert weights / 2 < arena < weights + 4096 * count, "but for the layer that predicts further tokens"
            assert arena + row["beside_weights_bytes"] == pytest.approx(row["held_bytes"])
        else:
            assert from_host == pytest.approx(0, abs=1e-9)


def test_what_is_kept_in_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the files, over several of them."""
    monkeypatch.setattr(load, "STEP_BYTES", MiB)
    dropped: list[tuple[str, int]] = []
    read: list[int] = []
    monkeypatch.setattr(load, "drop", lambda file, start, size: dropped.append((start, size)))
    monkeypatch.setattr(load, "cached_bytes", lambda file, start, size: 0)
    monkeypatch.setattr("os.preadv", lambda file, buffers, at: read.append(at))
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(bytes(3 * MiB))
    load.keep_in_page_cache(files, 4 * MiB)
    assert dropped == [(0, 2 * MiB)]
    assert read == [0, MiB, 2 * MiB, 2 * MiB]


def test_the_disk_is_measured_where_nothing_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "REGION_BYTES", MiB)
    monkeypatch.setattr(floors, "SAMPLE_BYTES", 2 * MiB)
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * MiB + 5))
    monkeypatch.setattr(floors, "cached_bytes", lambda file, start, size: size * (start < 4 * MiB))
    assert floors.regions(path) == [(4 * MiB, MiB), (7 * MiB, MiB)]
    monkeypatch.setattr(floors, "cached_bytes", lambda file, start, size: size)
    assert floors.regions(path) == [(0, MiB), (5 * MiB, MiB)], "all of it, where everything is cached"
    assert floors.disk(path) > 0


def test_table() -> None:
    row = {"case": "memory", "bytes": 14.34e9, "cached_bytes": 7e9, "disk_bytes_per_second": 0.5e9,
           "new_memory_bytes_per_second": 1e9, "floor_seconds": 28.9, "overlapped_floor_seconds": 14.7,
           "ready_seconds": 17.5, "first_token_seconds": 18.04, "beside_weights_bytes": 300 * MiB}  # fmt: skip
    lines = report.load({"results": [row, row | {"case": "mmap"}]}).splitlines()
    assert lines[2] == "| in memory, rearranged | 7.0 of 14.3 | 0.50 | 1.00 | 28.9 | 14.7 | 17.5 | 18.0 | 300 |"
    assert lines[3].startswith("| --mmap |") and lines[0].count("|") == lines[3].count("|")
