"""Where the weights lie: in memory, in the mapped file, in the weights cache; what is chosen, and what it takes."""

import dataclasses
import errno
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hetero.loading
from hetero import RunConfig, load
from hetero.arena import plan
from hetero.config import ModelConfig
from hetero.errors import FileError, RequestError, ResourceError
from hetero.gguf import GGUFFile, open_gguf
from hetero.planning import plan_to_run
from hetero.sizes import format_size
from hetero.weights_cache import HEADER_BYTES, Busy, WeightsCache
from tests.model_files import write
from tests.model_shapes import SHAPES
from tests.prompts import prompt
from tests.small_model import small_model

IDS = prompt(40)


def answer(path: Path, notices: list[str] | None = None, **run: Any) -> tuple[np.ndarray, set[str]]:
    """Logits, and the layouts of the experts."""
    notice = None if notices is None else notices.append
    engine, _ = load(path, RunConfig(context=128, threads=2, **run), notice=notice)
    try:
        return engine.logits(IDS), {tensor.layout for tensor in engine.file.tensors.values() if len(tensor.shape) == 3}
    finally:
        engine.close()


@pytest.mark.parametrize(
    "model",
    [("tiny", "Q4_K", {}), ("tiny", "Q8_0", {"kv_b_split": False, "nextn_layers": 1}), ("v2-lite", "F32", {}),
     ("tiny", "Q5_0", {"split_tensors": 20})],
)  # fmt: skip
def test_results_do_not_depend_on_where_the_weights_lie(model, model_file, tmp_path: Path) -> None:
    shape, type, changes = model
    path, cache = model_file(shape, type, **changes), str(tmp_path / "cache")
    expected, layouts = answer(path, mmap=True)
    assert layouts == {"gguf"}
    for where in ({"mmap": False}, {}, {"weights_cache": cache}, {"weights_cache": cache}):
        logits, layouts = answer(path, **where)
        assert layouts == {"x16"} and np.array_equal(logits, expected), where


def test_tied_head(model_file, monkeypatch) -> None:
    def tied(path: Path) -> GGUFFile:
        file = open_gguf(path)
        del file.tensors["output.weight"]
        return file

    monkeypatch.setattr(hetero.loading, "open_gguf", tied)
    mapped, read = (answer(model_file("tiny", "Q4_K"), mmap=mmap)[0] for mmap in (True, False))
    assert np.array_equal(mapped, read)


def test_weights_in_memory_need_the_file_no_more(model_file, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_file("tiny", "Q4_K").read_bytes())
    engine, _ = load(path, RunConfig(context=128, threads=2))
    before = engine.logits(IDS)
    os.truncate(path, 0)
    assert np.array_equal(engine.logits(IDS), before)
    engine.close()


# What is chosen


@pytest.fixture
def free(monkeypatch) -> Callable[[Path, int], int]:
    """free(path, more): so many bytes more than the model needs are free, and that is returned."""

    def set_free(path: Path, more: int) -> int:
        monkeypatch.setattr("hetero.planning.free_memory", lambda: 1 << 40)
        with open_gguf(path) as file:
            config = ModelConfig.from_gguf(file)
            planned = plan_to_run(file, config, RunConfig(context=128, threads=2))
        assert planned.plan.mode == "resident"
        size = planned.needed_bytes + more
        monkeypatch.setattr("hetero.planning.free_memory", lambda: size)
        return size

    return set_free


def test_a_model_beyond_free_memory_stays_in_the_file(model_file, free) -> None:
    path, notices = model_file("tiny", "Q4_K"), list[str]()
    size = format_size(free(path, -1_000_000))
    assert answer(path, notices)[1] == {"gguf"}
    (notice,) = notices
    assert re.fullmatch(rf"weights stay in the file \(mmap\): 5\d\d.* MiB do not fit in {size} of free memory", notice)
    assert answer(path, notices, mmap=True)[1] == {"gguf"}
    assert len(notices) == 1, "who asks for it needs no reason"


def test_a_limit_on_memory_is_kept(model_file, free) -> None:
    path, notices = model_file("tiny", "Q4_K"), list[str]()
    size = free(path, 4096)
    assert answer(path, notices, memory=size)[1] == {"x16"} and notices == []
    assert answer(path, notices, memory=size - 1_000_000)[1] == {"gguf"}
    assert "do not fit in " + format_size(size - 1_000_000) in notices[0]


def test_what_is_planned_to_lie_on_the_disk_is_not_read_ahead(model_file, free, monkeypatch) -> None:
    path, asked = model_file("tiny", "Q4_K"), list[Any]()
    monkeypatch.setattr(hetero.loading, "prefetch", lambda ranges: asked.extend(ranges))
    with open_gguf(path) as file:
        experts = {(t.offset, t.nbytes) for name, t in file.tensors.items() if "_exps" in name}
        others = {(t.offset, t.nbytes) for name, t in file.tensors.items() if "_exps" not in name}
    free(path, -1_000_000)
    answer(path)
    assert {item[1:] for item in asked} == others
    free(path, 4096)
    answer(path, mmap=True)
    assert {item[1:] for item in asked} == others | experts


def test_a_model_beyond_free_memory_is_not_read_into_it(model_file, free, monkeypatch) -> None:
    free(model_file("tiny", "Q4_K"), -1_000_000)
    monkeypatch.setattr("cpu_kernels.Pool", None)  # refused before anything begins
    with pytest.raises(ResourceError, match=r"need 0\.5 GiB of DRAM; 0\.5 GiB may be used; .*leave out --no-mmap"):
        load(model_file("tiny", "Q4_K"), RunConfig(context=128, threads=2, mmap=False))


@pytest.mark.parametrize("where", [{}, {"mmap": True}, {"mmap": False}, {"weights_cache": "cache"}])
def test_without_memory_for_the_cache_nothing_begins(where: dict[str, Any], model_file, monkeypatch) -> None:
    """Also where the weights stay in a file."""
    monkeypatch.setattr("hetero.planning.free_memory", lambda: 300 << 20)
    monkeypatch.setattr("cpu_kernels.Pool", None)
    said = r"the cache for 1 x 128 tokens in f16 and working memory need 0\.5 GiB; 0\.3 GiB of DRAM may be used"
    with pytest.raises(ResourceError, match=said):
        load(model_file("tiny", "Q4_K"), RunConfig(context=128, threads=2, **where))


def test_the_context_that_is_named_fits(model_file, monkeypatch) -> None:
    with open_gguf(model_file("tiny", "Q4_K")) as file:
        config = ModelConfig.from_gguf(file)
        run = RunConfig(context=192, threads=2, mmap=True)
        size = sum(use.kv_bytes + use.buffer_bytes for use in plan_to_run(file, config, run).dram)
        monkeypatch.setattr("hetero.planning.free_memory", lambda: size)
        assert plan_to_run(file, config, run).context == 192
        with pytest.raises(ResourceError, match=r"GiB of DRAM may be used; lower --context to 192 or less$"):
            plan_to_run(file, config, dataclasses.replace(run, context=256))


def test_the_cache_is_that_of_the_plan(model_file) -> None:
    """All of what was promised is allocated at load, and can be filled."""
    engine, _ = load(model_file("tiny", "Q4_K"), RunConfig(context=130, threads=2, kv="q8_0", mmap=True))
    try:
        assert engine.planned is not None
        assert sum(use.kv_bytes for use in engine.planned.dram) == engine.cache.nbytes
        engine.logits(prompt(130))
        assert engine.tokens_cached == engine.context == 130
    finally:
        engine.close()


def test_a_model_that_fits_is_read(model_file, free) -> None:
    path, notices = model_file("tiny", "Q4_K"), list[str]()
    free(path, 4096)
    assert answer(path, notices)[1] == {"x16"} and notices == []


def test_progress_counts_bytes(model_file) -> None:
    calls: list[tuple[str, int, int]] = []
    engine, _ = load(model_file("tiny", "Q4_K"), RunConfig(threads=2), lambda *call: calls.append(call))
    engine.close()
    reading = [(done, total) for stage, done, total in calls if stage == "reading weights"]
    assert reading[0][0] == 0 and reading[-1][0] == reading[-1][1] > 3_000_000
    assert [done for done, _ in reading] == sorted(done for done, _ in reading)
    assert calls[-1][0] != "reading weights"


# Files that change under us


@pytest.mark.parametrize("mmap", [True, False])
def test_file_cut_short_while_it_loads(mmap: bool, model_file, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_file("tiny", "Q4_K").read_bytes())
    start = min(tensor.offset for tensor in open_gguf(path).tensors.values())

    def cut(stage: str, done: int, total: int) -> None:
        os.truncate(path, start)

    said = r"model\.gguf: \S+, which is mapped, could not be read; .*cut short" if mmap else "was changed"
    with pytest.raises(FileError, match=said):
        load(path, RunConfig(context=128, threads=2, mmap=mmap), cut)


# The weights cache


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(small_model())
    return path


@pytest.fixture
def make(small: Path, tmp_path: Path) -> Callable[..., WeightsCache]:
    def make(directory: str = "cache") -> WeightsCache:
        file = open_gguf(small)
        return WeightsCache(str(tmp_path / directory), file, plan(file, ModelConfig.from_gguf(file)))

    return make


def sevens(arena: np.ndarray) -> Iterator[int]:
    arena[:] = 7
    yield arena.size


def interrupted(arena: np.ndarray) -> Iterator[int]:
    yield 1
    raise KeyboardInterrupt


def test_a_cache_is_written_once(make, small: Path, tmp_path: Path) -> None:
    cache = make()
    assert cache.map() is None and cache.problem == ""
    written = cache.write(sevens)
    assert (written == 7).all() and not written.flags.writeable
    mapped = make().map()
    assert mapped is not None and np.array_equal(mapped, written)
    (path,) = (tmp_path / "cache").iterdir()
    assert path == cache.path and path.name.startswith("small-") and path.suffix == ".x16"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_size == HEADER_BYTES + len(mapped)


def test_a_directory_that_is_there_keeps_its_mode(make, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    make("shared").write(sevens)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755


def test_another_file_has_another_cache(make, small: Path) -> None:
    names = [make().path.name]
    os.utime(small, ns=(1, 1))
    names.append(make().path.name)
    content = bytearray(small.read_bytes())
    content[content.index(b"small")] = ord("S")  # the model's name, in the header
    small.write_bytes(content)
    os.utime(small, ns=(1, 1))
    names.append(make().path.name)
    assert len(set(names)) == 3


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def foreign(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"layout_version", b"layout_Version", 1))


def headless(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def others(path: Path) -> None:
    os.chown(path, 12345, -1)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (cut, r"it has [\d,]+ bytes instead of"),
        (foreign, "damaged, or was made from something else"),
        (headless, "damaged, or was made from something else"),
        (pipe, "it has 0 bytes"),
        (others, "it belongs to another user"),
    ],
)
def test_a_hostile_cache_is_made_again(damage, problem: str, make) -> None:
    path = make().path
    make().write(sevens)
    if damage is others and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    damage(path)
    cache = make()
    assert cache.map() is None
    assert re.search(problem, cache.problem)
    cache.write(sevens)
    again = make().map()
    assert again is not None and (again == 7).all()


def test_a_cache_is_made_again_with_a_message(model_file, tmp_path: Path) -> None:
    path, directory, notices = model_file("tiny", "Q4_K"), tmp_path / "cache", list[str]()
    expected, _ = answer(path, notices, weights_cache=str(directory))
    assert notices == []
    (cache,) = directory.iterdir()
    cut(cache)
    logits, layouts = answer(path, notices, weights_cache=directory)
    assert np.array_equal(logits, expected) and layouts == {"x16"}
    assert len(notices) == 1 and f"{cache} cannot be used and is made again: it has" in notices[0]
    assert list(directory.iterdir()) == [cache]


def test_a_part_left_behind_is_used_up(make) -> None:
    cache = make()
    cache.path.parent.mkdir()
    part = cache.path.with_name(cache.path.name + ".part")
    part.write_bytes(b"x" * 100_000)
    assert (cache.write(sevens) == 7).all()
    assert list(cache.path.parent.iterdir()) == [cache.path]


def test_two_processes_do_not_write_the_same_cache(make, model_file, tmp_path: Path) -> None:
    cache = make()
    cache.path.parent.mkdir()
    part = cache.path.with_name(cache.path.name + ".part")
    with part.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            cache.write(sevens)
    assert part.exists(), "it is the other one's"


def test_without_the_cache_while_another_process_writes_it(model_file, tmp_path: Path, monkeypatch) -> None:
    def busy(self: WeightsCache, fill: object) -> None:
        raise Busy

    monkeypatch.setattr(WeightsCache, "write", busy)
    notices: list[str] = []
    assert answer(model_file("tiny", "Q4_K"), notices, weights_cache=str(tmp_path))[1] == {"x16"}
    assert notices == ["another process is writing the weights cache: this one goes without"]


def no_space(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["posix_fallocate", "fdatasync", "pwrite"])
def test_a_full_disk_leaves_nothing_behind(where: str, make, monkeypatch) -> None:
    cache = make()
    monkeypatch.setattr(os, where, no_space)
    with pytest.raises(ResourceError, match=r"cannot write .*No space left on device; name another directory"):
        cache.write(sevens)
    assert list(cache.path.parent.iterdir()) == []


def test_too_little_space_is_seen_before_writing(make, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(ResourceError, match=r"need .* in .*cache; 100 B are free there; name another"):
        make().write(sevens)


def test_an_interrupt_leaves_nothing_behind(make) -> None:
    cache = make()
    with pytest.raises(KeyboardInterrupt):
        cache.write(interrupted)
    assert list(cache.path.parent.iterdir()) == []


def test_a_directory_that_cannot_be_made(make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write .*Not a directory"):
        make("file/cache").write(sevens)


def test_no_mmap_and_a_cache_contradict_each_other() -> None:
    with pytest.raises(RequestError, match=r"weights-cache with mmap = False; .*; leave out --no-mmap"):
        RunConfig(mmap=False, weights_cache="cache")


# Memory

PEAK = """
import sys
from hetero import RunConfig, load
def peak():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
engine, _ = load(sys.argv[1], RunConfig(context=64, threads=2))
print(peak(), [tensor.layout for tensor in engine.file.tensors.values()].count("x16"))
"""


def test_peak_memory_is_the_model_and_a_little(tmp_path: Path) -> None:
    """In a process of its own. Mapped pages that were not given back would count a second time."""
    path = tmp_path / "medium.gguf"
    write(path, dataclasses.replace(SHAPES["lite"], layers=2, vocab=1024), "Q4_K_M")
    size = path.stat().st_size
    assert size > 400 << 20
    result = subprocess.run([sys.executable, "-c", PEAK, path], stdout=subprocess.PIPE, text=True, check=True)
    peak, rearranged = map(int, result.stdout.split())
    assert rearranged > 20
    assert size < peak < size + (350 << 20)
