"""The probe: what is measured, with which calls, and what of it is kept. No test looks at how fast anything is."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cpu_kernels import Pool, rms_norm
from hetero import cpu_rates, gpu_rates, probe, saved_machine
from hetero.cpu_rates import measure_cpu, rates_for
from hetero.disk_rate import LEAST_BYTES, disk_rate
from hetero.kernel_rates import LEAST_ROTATED, ROTATED_BYTES, VERB_COLUMNS, Calls, KernelRates
from hetero.saved_machine import Saved
from hetero.stopwatch import Stopwatch
from hetero.verb_rates import CALLS_OF_A_PASS, FEW_HEADS, MANY_HEADS, AttentionRates, verb_rates
from placement import (
    AttentionRate,
    LinearRate,
    Machine,
    Memory,
    Model,
    Predictor,
    Processor,
    Settings,
    VerbRate,
    preset,
)
from placement.known_parts import DISK_BANDWIDTH
from placement.plan import Placed
from placement.rates import Rates
from tests.test_imports import ROWS

QUICK = Stopwatch(seconds=0.0, samples=1)


def saved(threads: int = 2) -> Machine:
    found = saved_machine.read(saved_machine.fingerprint(threads))
    assert found is not None
    return found.machine


class Clock:
    """A clock that only calls move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, *seconds: float):
        """A call that takes as long, the last of them again and again."""
        left = list(seconds)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture(scope="module")
def pool():
    with Pool(2) as made:
        yield made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernels' own cache is chosen at import: this one is the probe's only."""
    monkeypatch.setattr(saved_machine, "directory", lambda: tmp_path / "hetero")
    return tmp_path / "hetero"


def test_stopwatch_takes_the_median_without_the_first_call() -> None:
    clock = Clock()
    assert Stopwatch(0.0, 3, clock).time(clock.taking(100.0, 1.0, 50.0, 2.0)) == 2.0


def test_stopwatch_goes_on_until_the_seconds_are_over() -> None:
    clock = Clock()
    assert Stopwatch(5.0, 1, clock).time(clock.taking(9.0, 1.0, 1.0, 7.0)) == 1.0
    assert clock.now == 18.0  # 9, 1, 1, 7


def test_stopwatch_takes_calls_in_turn() -> None:
    seen: list[int] = []
    Stopwatch(0.0, 5, Clock()).time_in_turn([lambda: seen.append(0), lambda: seen.append(1)])
    assert seen == [0, 1, 0, 1, 0, 1]


def test_recorded_calls_are_timed_in_parts(pool: Pool) -> None:
    """Of 10 calls in 3 parts 3 each count, and every part has its turn."""
    clock, seen = Clock(), list[str]()
    x, weight = np.ones((1, 64), np.float32), np.ones(64, np.float32)

    class Watch(Stopwatch):
        def time(self, call):
            for _ in range(4):
                call()
                seen.append("sample")
            return 6.0

    calls = [lambda i=i: seen.append(f"call {i}") or rms_norm(pool, x, weight, 1e-6) for i in range(10)]
    assert Watch(0.0, 1, clock).time_recorded(pool, calls, 3) == 2.0
    assert seen == [*(f"call {i}" for i in range(9)), *["sample"] * 4]
    assert Watch(0.0, 1, clock).time_recorded(pool, calls[:2], 3) == 6.0


@pytest.mark.parametrize("verb", ["linear", "heads", "experts", "mapped"])
def test_calls_go_through_the_memory(pool: Pool, verb: str) -> None:
    """Each call computes with other weights, and with as many as it says."""
    kernels = KernelRates(pool, QUICK, nbytes=LEAST_ROTATED)
    for large in (True, False):
        calls: Calls = getattr(kernels, f"_{verb}")("Q4_K", large)
        call, last = calls.bind(2), calls.number - 1
        before = [np.array(call(i), copy=True) for i in (0, last)]
        end = calls.number * calls.weights * 144 // 256
        kernels._memory[end - (1 << 19) : end] = 0
        after = [np.array(call(i), copy=True) for i in (0, last)]
        assert last > 0 and np.isfinite(before[0]).all()
        assert np.array_equal(before[0], after[0]) and not np.array_equal(before[1], after[1])
        kernels._pattern = None  # fill it again


@pytest.mark.parametrize(
    ("verb", "type"), [("linear", "F32"), ("heads", "Q5_0"), ("experts", "Q2_K"), ("mapped", "Q3_K")]
)
def test_rate_of_a_model_clock(pool: Pool, monkeypatch: pytest.MonkeyPatch, verb: str, type: str) -> None:
    """A kernel that takes 5 us a call and 20 ps for each weight and column is found to do so."""
    kernels = KernelRates(pool, QUICK, 16, LEAST_ROTATED)
    monkeypatch.setattr(kernels, "_time", lambda calls, columns, parts=1: 5e-6 + 2e-11 * calls.weights * columns)
    rate = kernels.rate(verb, type)  # type: ignore[arg-type]
    assert rate.call_seconds == pytest.approx(5e-6)
    columns = [c for c in VERB_COLUMNS[verb] if c <= 16]  # type: ignore[index]
    assert [c for c, _ in rate.flops_at] == columns != [*VERB_COLUMNS[verb]]  # type: ignore[index]
    assert [flops for _, flops in rate.flops_at] == pytest.approx([1e11] * len(columns))


def test_noise_never_makes_a_rate_nonsense(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small call that was disturbed takes longer than a large one."""
    kernels = KernelRates(pool, QUICK, 1, LEAST_ROTATED)
    monkeypatch.setattr(kernels, "_time", lambda calls, columns, parts=1: 1.0 if calls.weights < 1 << 22 else 1e-3)
    rate = kernels.rate("linear", "Q4_K")
    assert rate.flops_at[0][1] > 0 and rate.call_seconds >= 0


def test_calls_from_python_take_longer_than_recorded_ones(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a call takes, the recorded one is a part of it."""
    monkeypatch.setattr(Stopwatch, "time", lambda self, call: call() is None or 15e-6)
    monkeypatch.setattr(Stopwatch, "time_recorded", lambda self, pool, calls: 5e-6)
    found = {rate.verb: rate for rate in verb_rates(pool, QUICK)}
    assert found["call"].call_seconds == pytest.approx(10e-6)
    assert found["pass"].call_seconds == pytest.approx(CALLS_OF_A_PASS * 10e-6)


def test_attention_is_taken_apart(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that follow the formula of placement give its constants back."""
    want = AttentionRate("f16", 2e-6, 1e11, 1e11, 2e11, 3e-7, 5e-11)
    rates = Rates(_processor(attention=(want,)))
    attention = AttentionRates(pool, QUICK, rotated_bytes=0, depth=128)

    def seconds(tokens: int, heads: int, depth: int) -> float:
        d = replace(preset("deepseek-v3:q4_k_m").dimensions, heads=heads)
        return rates.attention_seconds(d, "f16", tokens, depth)

    monkeypatch.setattr(attention, "absorbed", lambda layers, tokens, heads, depth: seconds(tokens, heads, depth))
    monkeypatch.setattr(attention, "expanded", lambda layer, tokens, heads: seconds(tokens, heads, 0) - 2e-6)
    found = attention.rate("f16").to_json()
    expected = want.to_json()
    assert found.pop("kv") == expected.pop("kv")
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("heads", [FEW_HEADS, MANY_HEADS])
@pytest.mark.parametrize("depth", [0, 127])
def test_a_pause_of_the_machine_while_attention_is_timed(pool: Pool, monkeypatch, heads: int, depth: int) -> None:
    """One of the four timings takes a second more: rates are rates still (one was negative, and refused)."""
    attention = AttentionRates(pool, QUICK, rotated_bytes=0, depth=128)

    def seconds(layers: object, tokens: int, with_heads: int, after: int) -> float:
        return 1e-6 * with_heads * (after + 1) + ((with_heads, after) == (heads, depth))

    monkeypatch.setattr(attention, "absorbed", seconds)
    monkeypatch.setattr(attention, "expanded", lambda *given: 1e-3)
    rate = attention.rate("f16")
    assert rate.decode > 0 and rate.absorbed > 0


def test_kernels_run_for_every_kv_type_and_verb(pool: Pool) -> None:
    for kv in ("f32", "f16", "q8_0"):
        rate = AttentionRates(pool, QUICK, rotated_bytes=0, depth=512).rate(kv)  # type: ignore[arg-type]
        assert rate.kv == kv and rate.absorbed > 0 and rate.expanded > 0
    verbs = verb_rates(pool, QUICK)
    small = {"embed", "rms_norm", "rope", "write_cache", "route", "dequantize"}
    assert {rate.verb for rate in verbs} == small | {"call", "pass"}


def test_only_what_is_missing_is_measured(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _fake_kernels(monkeypatch)
    known = measure_cpu(pool, QUICK, "cpu", rates_for(["Q4_K"]), ["f16"])
    assert asked == [
        "verbs",
        "f16",
        "linear F32",
        "mapped F32",
        "experts Q4_K",
        "heads Q4_K",
        "linear Q4_K",
        "mapped Q4_K",
    ]
    asked.clear()
    more = measure_cpu(pool, QUICK, "cpu", rates_for(["Q4_K", "Q6_K"]), ["f16", "q8_0"], known)
    assert asked == ["q8_0", "experts Q6_K", "heads Q6_K", "linear Q6_K", "mapped Q6_K"]
    assert set(known.linear) < set(more.linear) and known.verbs == more.verbs
    asked.clear()
    assert measure_cpu(pool, QUICK, "cpu", rates_for(["Q6_K"]), ["f16"], more) == more and not asked


@pytest.mark.parametrize(
    ("free", "taken"), [(1 << 40, ROTATED_BYTES), (300 << 20, 150 << 20), (1 << 20, LEAST_ROTATED)]
)
def test_memory_that_a_model_left(pool: Pool, monkeypatch: pytest.MonkeyPatch, free: int, taken: int) -> None:
    _fake_kernels(monkeypatch)
    seen, kernels = list[int](), cpu_rates.KernelRates
    monkeypatch.setattr(cpu_rates, "free_memory", lambda: free)
    monkeypatch.setattr(cpu_rates, "KernelRates", lambda *given: seen.append(given[-1]) or kernels(*given))
    measure_cpu(pool, QUICK, "cpu", rates_for(["Q4_K"]), ["f16"])
    assert seen == [taken]


def test_probe_measures_once(pool: Pool, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    asked = _fake_kernels(monkeypatch)
    first = probe.probe(pool, ["Q4_K"])
    assert first.measured and first.cpu.threads == 2 and asked
    asked.clear()
    again = probe.probe(pool, ["Q4_K"])
    assert not asked and again.processors == first.processors
    assert again.dram_bytes <= saved().dram_bytes
    assert probe.probe(pool, ["Q4_K"], refresh=True).processors == first.processors and "verbs" in asked
    (file,) = cache.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600 and cache.stat().st_mode & 0o777 == 0o700


def test_the_disk_is_read_once(pool: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_kernels(monkeypatch)
    unread = probe.probe(pool, [])
    assert unread.disk is not None and unread.disk.read_bandwidth == DISK_BANDWIDTH
    assert any("disk was not measured" in note for note in unread.notes)
    monkeypatch.setattr("hetero.disk_rate.disk_rate", lambda path, clock: 3e9)
    read = probe.probe(pool, [], path=tmp_path)
    monkeypatch.setattr("hetero.disk_rate.disk_rate", lambda path, clock: pytest.fail("it was measured"))
    again = probe.probe(pool, [], path=tmp_path)
    assert read.disk == again.disk and read.disk is not None and read.disk.read_bandwidth == 3e9


def test_disk_rate_is_that_of_what_was_read(tmp_path: Path) -> None:
    path, clock = tmp_path / "weights", iter(range(10_000))
    path.write_bytes(b"x" * (LEAST_BYTES + 5))
    rate = disk_rate(path, lambda: next(clock) * 1e-6)
    assert rate is not None and rate > 0
    path.write_bytes(b"x")
    assert disk_rate(path) is None and disk_rate(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b'{"fingerprint": {}}', b'{"machine": 1}', b"1e999"],
)
def test_a_damaged_file_is_measured_anew(pool: Pool, monkeypatch: pytest.MonkeyPatch, cache: Path, content) -> None:
    asked = _fake_kernels(monkeypatch)
    probe.probe(pool, ["Q4_K"])
    (file,) = cache.iterdir()
    file.write_bytes(content)
    asked.clear()
    probe.probe(pool, ["Q4_K"])
    assert "verbs" in asked and saved().measured


def test_values_that_cannot_be_are_measured_anew(pool: Pool, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    asked = _fake_kernels(monkeypatch)
    probe.probe(pool, ["Q4_K"])
    (file,) = cache.iterdir()
    whole = json.loads(file.read_text())
    for spoil in (lambda m: m.update(measured="yes"), lambda m: m["memories"].clear(), lambda m: m.pop("name")):
        document = json.loads(json.dumps(whole))
        spoil(document["machine"])
        file.write_text(json.dumps(document))
        asked.clear()
        probe.probe(pool, ["Q4_K"])
        assert "verbs" in asked


def test_a_link_or_a_directory_in_its_place(pool: Pool, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    _fake_kernels(monkeypatch)
    key = saved_machine.fingerprint(2)
    cache.mkdir()
    os.mkfifo(saved_machine.path_for(key))
    assert saved_machine.read(key) is None
    probe.probe(pool, [])
    assert saved_machine.read(key) is not None  # replaced
    saved_machine.path_for(key).unlink()
    saved_machine.path_for(key).mkdir()
    assert saved_machine.read(key) is None
    assert any("could not be saved" in note for note in probe.probe(pool, []).notes)
    assert len(list(cache.iterdir())) == 1  # nothing is left behind


def test_the_fingerprint_changes_with_what_matters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def path() -> Path:
        return saved_machine.path_for(saved_machine.fingerprint(2))

    found, known = [path()], {package: saved_machine._version(package) for package in saved_machine.PACKAGES}
    assert path() == found[0] and saved_machine.path_for(saved_machine.fingerprint(1)) not in found
    changes = {
        "cpu_name": lambda: "another",
        "_gpus": lambda: ["Model: another"],
        "digest": lambda files: "others",
        "_version": lambda package: "99" if package == "torch" else known[package],
    }
    for name, value in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(saved_machine, name, value)
            found.append(path())
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0})
        found.append(path())
    monkeypatch.setenv("NUMBA_CPU_NAME", "znver3")
    assert len({*found, path()}) == len(found) + 1


def test_the_fingerprint_covers_what_measures() -> None:
    """Every module that may import the probe's, and the kernels; it depends on each of them."""
    (row,) = (row for row in ROWS if "probe" in row)
    files = saved_machine.sources()
    hetero = {file.stem for file in files if file.parent.name == "hetero"}
    assert {*row, "stopwatch", "random_weights"} == hetero == {*saved_machine.MEASURING}
    assert {"bandwidth.py", "known_parts.py"} <= {file.name for file in files}


def test_a_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    files = [tmp_path / "a.py", tmp_path / "b.py"]
    found = []
    for texts in (("1", "2"), ("2", "1"), ("1", "3")):
        for file, text in zip(files, texts, strict=True):
            file.write_text(text)
        found += [saved_machine.digest(files), saved_machine.digest(files[:1])]
        assert saved_machine.digest(files[::-1]) == found[-2]
    assert len({*found}) == 5


def test_a_torch_that_comes_later_measures_the_gpu(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_kernels(monkeypatch)
    assert probe.probe(pool, []).gpu is None
    clock = Clock()
    found = gpu_rates.measure_gpu(Stopwatch(0.0, 1, clock), _FakeTorch(clock))
    monkeypatch.setattr(probe, "_gpu", lambda stopwatch: found)
    assert probe.probe(pool, []).gpu is None, "nothing has changed"
    monkeypatch.setattr(saved_machine, "version", lambda package: "2.13.0+cu130")
    there = probe.probe(pool, [])
    assert there.gpu is not None and there.vram is not None and there.vram.bytes == 24 << 30


def test_another_key_in_the_file_is_not_believed() -> None:
    key = {"cpu": "a"}
    assert saved_machine.write(key, _saved()) == "" and saved_machine.read(key) == _saved()
    os.rename(saved_machine.path_for(key), saved_machine.path_for({"cpu": "b"}))
    assert saved_machine.read({"cpu": "b"}) is None


def test_gpu_from_a_fake_torch() -> None:
    """A device that moves 1e12 bytes/s inside, 1e10 in and out, and multiplies at 1e14 FLOP/s."""
    clock = Clock()
    memory, link, processor = gpu_rates.measure_gpu(Stopwatch(0.0, 1, clock), _FakeTorch(clock))
    assert (memory.name, memory.kind, memory.bytes) == ("gpu0", "vram", 24 << 30)
    assert memory.read_bandwidth == pytest.approx(2e12)
    assert link.to_gpu_pinned == pytest.approx(1e10) and link.from_gpu_pageable == pytest.approx(1e10)
    many = processor.linear[0].flops_at[-1][1]
    assert processor.description == "Fake" and many == pytest.approx(0.4e14)


def test_no_torch_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str):
        raise ImportError(name)

    monkeypatch.setattr(gpu_rates, "import_module", missing)
    assert gpu_rates.installed_torch() is None
    fake = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(gpu_rates, "import_module", lambda name: fake)
    assert gpu_rates.installed_torch() is None


def test_a_probed_machine_predicts(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document is complete: a plan's speeds follow from it."""
    _fake_kernels(monkeypatch)
    model: Model = preset("deepseek-v2-lite:q4_k_m")
    machine = Machine.from_json(json.loads(json.dumps(probe.probe(pool, ["Q4_K"]).to_json())))
    placed = tuple(Placed(tensor.name, "node0", tensor.nbytes) for tensor in model.tensors)
    speed = Predictor(model, machine, Settings(context=4096, threads=2), placed)
    assert speed.decode(0).tokens_per_second > speed.decode(4000).tokens_per_second > 0
    assert speed.prefill(512).tokens_per_second > 0


def _saved() -> Saved:
    return Saved(Machine("m", True, (Memory("node0", "dram", 1 << 30, 1e10),), (), (_processor(),)), (("7", 1e9),))


def _processor(**changes) -> Processor:
    linear = LinearRate("linear", "Q4_K", 0.5625, 1e-6, ((1, 1e10), (64, 1e11)))
    attention = AttentionRate("f16", 1e-6, 1e10, 1e10, 2e10)
    return replace(Processor("cpu", "cpu", 2, (linear,), (attention,), ()), **changes)


def _fake_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is computed; what was asked for is listed."""
    asked: list[str] = []

    class Kernels:
        def __init__(self, pool: Pool, stopwatch: Stopwatch, most: int = 1, nbytes: int = 0):
            pass

        def rate(self, verb, type=None):
            asked.append(f"{verb} {type}" if type else verb)
            if type is None:
                return AttentionRate(verb, 1e-6, 1e10, 1e10, 2e10, 1e-7, 1e-10)
            return LinearRate(verb, type, 0.5625, 1e-6, ((1, 1e10), (64, 1e11)))

    def verbs(pool: Pool, stopwatch: Stopwatch) -> tuple[VerbRate, ...]:
        asked.append("verbs")
        return (VerbRate("rope", 1e-6, 1e-9),)

    monkeypatch.setattr(cpu_rates, "KernelRates", Kernels)
    monkeypatch.setattr(cpu_rates, "AttentionRates", Kernels)
    monkeypatch.setattr(cpu_rates, "verb_rates", verbs)
    monkeypatch.setattr(probe, "read_bandwidth", lambda pool: 2e10)
    monkeypatch.setattr(probe, "_gpu", lambda stopwatch: None)
    return asked


class _FakeTorch:
    uint8, bfloat16 = "uint8", "bfloat16"

    def __init__(self, clock: Clock):
        properties = SimpleNamespace(name="Fake", multi_processor_count=10)
        self.clock = clock
        self.cuda = SimpleNamespace(
            get_device_properties=lambda device: properties,
            mem_get_info=lambda device: (20 << 30, 24 << 30),
            synchronize=lambda: None,
        )

    def empty(self, nbytes: int, dtype: str, device: str, pin_memory: bool):
        clock = self.clock

        class Tensor:
            def __init__(self) -> None:
                self.device = device

            def zero_(self):
                return self

            def copy_(self, source, non_blocking: bool) -> None:
                clock.now += nbytes / (1e12 if source.device == self.device else 1e10)

        return Tensor()

    def ones(self, shape: tuple[int, int], dtype: str, device: str) -> tuple[int, int]:
        return shape

    def mm(self, a: tuple[int, int], b: tuple[int, int]) -> None:
        self.clock.now += 2 * a[0] * a[1] * b[1] / 1e14
