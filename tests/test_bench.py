"""`hetero bench`: what it counts, in which order it measures, what it refuses, and that the clocks change nothing."""

import json
import re
import sys
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import report, turns
from cli import app
from cpu_kernels import Pool
from cpu_kernels.bandwidth import STREAMS, WINDOW_BYTES, Reader
from hetero import RunConfig, bench, contest, demo, load, parts
from hetero.bench import Bench, run_bench
from hetero.bench_report import describe
from hetero.config import ModelConfig
from hetero.errors import FileError, RequestError, ResourceError, UnsupportedError
from hetero.expert_counts import ExpertCounter
from hetero.gguf import open_gguf
from hetero.inspect import inspect_file
from hetero.planning import plan_to_run, unmeasured_machine
from hetero.sampler import Sampling
from hetero.terminal import Screen
from placement import Machine, Memory, Predictor

pytestmark = pytest.mark.usefixtures("brief_probe")
DEMO = str(demo.path())
KEYS = {
    "model", "machine", "threads", "prompt_tokens", "generated_tokens", "depth", "prefill_tokens_per_second",
    "prefill_tokens_per_second_best", "decode_tokens_per_second", "decode_tokens_per_second_best",
    "decode_ceiling_tokens_per_second", "read_bandwidth_bytes_per_second", "weight_bytes_per_token",
    "predicted_prefill_tokens_per_second", "predicted_decode_tokens_per_second", "load_seconds", "peak_resident_bytes",
    "parts", "approximations", "extrapolated_from_layers", "versions",
}  # fmt: skip


class FakeContestant:
    """Speeds out of a list; `calls` keeps what all contestants were asked."""

    calls: list[tuple[Any, ...]]

    def __init__(self, kind: str, *arguments: Any):
        self.name = kind if kind == "hetero" else ("rearranged" if arguments[-1] else "as in the file")
        self.calls.append((self.name, "start"))
        self.speeds = iter([10.0, 30.0, 20.0])

    def ask(self, method: str, *arguments: Any) -> Any:
        self.calls.append((self.name, method, *map(np.shape, arguments)))
        scale = {"hetero": 4.0, "as in the file": 1.0, "rearranged": 2.0}[self.name]
        return {
            "decode": lambda: scale * next(self.speeds),
            "prefill": lambda: scale * 100,
            "bandwidth": lambda: 1e9,
            "parts": lambda: dict.fromkeys(parts.PARTS, 0.002),
            "facts": lambda: {"threads": 2, "load_seconds": 1.5, "peak_resident_bytes": 123},
            "predict": lambda: {"decode": 44.0, "prefill": 300.0},
            "expert_counts": lambda: {"counts": [[1, 2]]},
        }[method]()

    def close(self) -> None:
        self.calls.append((self.name, "close"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    monkeypatch.setattr(FakeContestant, "calls", [], raising=False)
    monkeypatch.setattr(bench, "Here", FakeContestant)
    monkeypatch.setattr(bench, "Apart", FakeContestant)
    return FakeContestant.calls


def free_memory(monkeypatch: pytest.MonkeyPatch, files: float) -> None:
    """So many times the demo model."""
    free = int(files * demo.path().stat().st_size)
    monkeypatch.setattr(bench, "free_memory", lambda: free)


def test_document(calls: list[tuple[Any, ...]]) -> None:
    result = run_bench(Bench(DEMO, prompt=20, generate=5, depth=30), RunConfig(kv="q8_0"), Screen())
    report = inspect_file(DEMO)
    assert result.keys() >= KEYS
    assert (result["decode_tokens_per_second"], result["decode_tokens_per_second_best"]) == (80, 120)
    assert result["prefill_tokens_per_second"] == 400
    assert result["weight_bytes_per_token"] == report["active_bytes_per_token"]
    assert result["kv_bytes_at_depth"] == 30 * report["kv_bytes_per_token"]["q8_0"]
    read = result["weight_bytes_per_token"] + result["kv_bytes_at_depth"]
    assert result["decode_ceiling_tokens_per_second"] == 1e9 / read
    assert result["read_bandwidth_bytes_per_second"] == 1e9
    assert (result["peak_resident_bytes"], result["load_seconds"], result["threads"]) == (123, 1.5, 2)
    assert list(result["parts"]) == ["attention", "experts", "dense", "head", "other"]
    assert result["predicted_decode_tokens_per_second"] == 44 and result["predicted_prefill_tokens_per_second"] == 300
    assert result["approximations"] == [] and result["extrapolated_from_layers"] is None
    assert calls == [
        ("hetero", "start"),
        *[("hetero", "decode", (31,), ()), ("hetero", "bandwidth"), ("hetero", "parts", (31,))] * 3,
        *[("hetero", "prefill", (20,)), ("hetero", "bandwidth")] * 3,
        ("hetero", "facts"),
        ("hetero", "predict", (), ()),
        ("hetero", "close"),
    ]


def test_text_has_the_ceiling_first(calls: list[tuple[Any, ...]]) -> None:
    text = describe(run_bench(Bench(DEMO, depth=30), RunConfig(), Screen()))
    assert text.index("ceiling") < text.index("measured")
    measured = re.search(r"measured +([\d.]+) tok/s +(\d+)% of the ceiling", text)
    ceiling = re.search(r"ceiling +([\d.]+) tok/s", text)
    assert measured is not None and ceiling is not None
    assert float(measured[1]) == 80 and round(8000 / float(ceiling[1])) == int(measured[2])
    assert "44.0 tok/s  -45% (hetero plan)" in text and "300.0 tok/s  -25% (hetero plan)" in text
    assert "attention 20%" in text and "of 10.0 ms" in text and "llama.cpp" not in text


def test_comparison_takes_turns(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 10)
    result = run_bench(Bench(DEMO, repeat=2, compare="llama.cpp"), RunConfig(), Screen())
    measured = [call[:2] for call in calls if call[1] in ("decode", "prefill")]
    names = ("hetero", "as in the file", "rearranged")
    assert measured == [(name, phase) for phase in ("decode", "prefill") for _ in range(2) for name in names]
    compared = result["compare"]
    assert (compared["decode_ratio"], compared["prefill_ratio"]) == (2, 2), "the better of the two"
    assert compared["variants"]["as in the file"]["decode_tokens_per_second"] == 20
    assert compared["left_out"] == {}
    assert "decode 2.00 x, prefill 2.00 x" in describe(result)


def test_comparison_one_at_a_time(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 1.5)
    result = run_bench(Bench(DEMO, repeat=2, compare="llama.cpp"), RunConfig(), Screen())
    starts = [call for call in calls if call[1] in ("start", "close")]
    engines = ("hetero", "as in the file", "rearranged")
    assert starts == [(name, what) for name in engines * 2 for what in ("start", "close")]
    assert result["compare"]["left_out"] == {}
    free_memory(monkeypatch, 1)
    alone = run_bench(Bench(DEMO, compare="llama.cpp"), RunConfig(), Screen())
    assert list(alone["compare"]["left_out"]) == ["as in the file", "rearranged"]
    assert "left out, needs about" in describe(alone)
    assert alone["compare"]["decode_ratio"] is None and "over the better one" not in describe(alone)


@pytest.mark.parametrize(
    ("what", "run", "error", "said"),
    [
        ({"synthetic": "deepseek-v3:q9"}, {}, RequestError, "no preset 'deepseek-v3:q9'"),
        ({"layers": 2}, {}, RequestError, "--layers 2; all layers of a file are measured"),
        ({"depth": 1 << 20}, {}, RequestError, "made for at most"),
        ({"prompt": 1 << 20}, {}, RequestError, "made for at most"),
        ({"depth": 100, "generate": 100}, {"context": 200}, RequestError, "need 512 tokens; --context 200"),
        ({"model": "/nowhere.gguf"}, {}, FileError, "nowhere"),
    ],
)
def test_refused_before_anything_starts(
    calls: list[tuple[Any, ...]], what: dict[str, Any], run: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=re.escape(said)):
        run_bench(Bench(**{"model": DEMO} | what), RunConfig(**run), Screen())
    assert calls == []


def test_a_run_that_just_fits(calls: list[tuple[Any, ...]]) -> None:
    run_bench(Bench(DEMO, prompt=8, depth=100, generate=99), RunConfig(context=200), Screen())
    with pytest.raises(RequestError, match="need 201 tokens"):
        run_bench(Bench(DEMO, prompt=8, depth=100, generate=100), RunConfig(context=200), Screen())


def test_expert_counts_are_those_of_eval(tmp_path: Path) -> None:
    """Of the tokens that were measured, whatever passes they came in; `hetero plan` reads them."""
    path = tmp_path / "counts.json"
    what = Bench(DEMO, prompt=100, generate=3, depth=70, repeat=1, expert_counts=str(path))
    run_bench(what, RunConfig(threads=1), Screen())
    document = json.loads(path.read_text())
    engine, _ = load(DEMO, RunConfig(context=128, threads=1))
    try:
        ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, what.context).tolist()
        counter = ExpertCounter(engine)
        decoded = [*ids[:71], *engine.generate(ids[:71], Sampling(temperature=0.0, max_tokens=3), ())]
        for sequence in (decoded, ids[:100]):
            counter.logits(sequence)
    finally:
        engine.close()
    expected = counter.document()
    assert document.keys() == expected.keys() and document["tokens"] == expected["tokens"] == 174
    moved = np.abs(np.array(document["counts"]) - np.array(expected["counts"])).sum()
    assert moved <= 0.05 * np.sum(expected["counts"]), "but for rounding that depends on the tokens of a pass"
    used = engine.config.experts_used
    assert [sum(row) for row in document["counts"]] == [174 * used] * len(engine.model.mixtures)
    machine = ["--gpu", "rtx-4090", "--memory", "64GiB", "--socket", "epyc-milan"]
    planned = CliRunner().invoke(app, ["plan", "demo", *machine, "--expert-counts", str(path), "--json"])
    assert planned.exit_code == 0, planned.stderr
    counts = json.loads(planned.stdout)["settings"]["expert_counts"]
    assert counts == document["counts"]


def test_expert_counts_are_counted_once(calls: list[tuple[Any, ...]], tmp_path: Path, monkeypatch) -> None:
    """After everything was measured; also where each engine is loaded for each round."""
    free_memory(monkeypatch, 1.5)
    path = tmp_path / "counts.json"
    run_bench(Bench(DEMO, repeat=2, compare="llama.cpp", expert_counts=str(path)), RunConfig(), Screen())
    assert json.loads(path.read_text()) == {"counts": [[1, 2]]}
    assert [call for call in calls if call[1] == "expert_counts"] == [("hetero", "expert_counts", (1,), (), (512,))]
    with pytest.raises(OSError, match="nowhere"):
        run_bench(Bench(DEMO, expert_counts="/nowhere/counts.json"), RunConfig(), Screen())


def probed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """No kernels are timed: a machine that is described. The list says with what the probe was called."""
    asked = list[dict[str, Any]]()

    def probe(pool: Pool, types: set[str], **named: Any) -> Machine:
        asked.append({"types": types} | named)
        disk = Memory("disk", "disk", 1 << 40, 1e8)
        machine = unmeasured_machine()
        return replace(machine, memories=(*machine.nodes, disk))

    monkeypatch.setattr("hetero.prediction.probe", probe)
    return asked


@pytest.mark.parametrize("mmap", [True, False])
def test_a_loaded_plan_is_predicted(mmap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped or not: with the places of the plan, and rates that a probe found. Nothing is on the disk here."""
    asked = probed(monkeypatch)
    here = contest.Hetero(DEMO, RunConfig(context=64, threads=1, mmap=mmap))
    try:
        plan, found = here.engine.planned, here.predict(5, 20)
        assert plan is not None and plan.plan.mode == ("mmap" if mmap else "resident")
        speed = Predictor(plan.model, unmeasured_machine(), plan.plan.settings, plan.plan.tensors)
        assert found == {
            "decode": speed.decode(5).tokens_per_second,
            "prefill": speed.prefill(20).tokens_per_second,
        }
    finally:
        here.close()
    assert asked == [{"types": {"F32", "Q4_K", "Q6_K", "Q8_0"}, "kv": ["f16"], "path": None}]


def test_experts_on_the_disk_are_predicted_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the plan has it, which free memory too small for the model made; the disk is measured then."""
    asked = probed(monkeypatch)
    with open_gguf(DEMO) as file:
        config = ModelConfig.from_gguf(file)
        needed = plan_to_run(file, config, RunConfig(context=64, threads=1)).needed_bytes
    monkeypatch.setattr("hetero.planning.free_memory", lambda: needed - 3_000_000)
    here = contest.Hetero(DEMO, RunConfig(context=64, threads=1))
    try:
        slow = here.predict(5, 20)
        planned, parts = here.engine.planned, here.predictor().decode(5).parts
    finally:
        here.close()
    assert planned is not None and asked[0]["path"] == demo.path()
    left = sum(one.bytes for one in planned.plan.tensors if one.place == "disk" and one.name in planned.on_disk)
    seconds = sum(part.seconds for part in parts if part.place == "disk")
    share = config.experts_used / config.experts
    assert left == pytest.approx(3_000_000, rel=1e-3) and seconds == pytest.approx(share * left / 1e8, rel=1e-3)
    assert slow["decode"] < 1 / seconds


def test_llama_cpp_is_missing(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UnsupportedError, match=r"not installed; pip install 'hetero\[llama\]'"):
        run_bench(Bench(DEMO, compare="llama.cpp"), RunConfig(), Screen())
    assert calls == []


def test_a_model_it_cannot_run(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "inspect_file", lambda path: {"refused": "the architecture is llama"})
    with pytest.raises(UnsupportedError, match="the architecture is llama"):
        run_bench(Bench(DEMO), RunConfig(), Screen())


def test_the_demo_model_beside_llama_cpp() -> None:
    """Everything real, each engine in its own process."""
    what = Bench(DEMO, prompt=40, generate=6, depth=20, repeat=1, compare="llama.cpp")
    result = run_bench(what, RunConfig(threads=1), Screen())
    variants = result["compare"]["variants"]
    assert list(variants) == ["as in the file", "rearranged"] and result["compare"]["left_out"] == {}
    speeds = [
        row[f"{phase}_tokens_per_second"] for row in [result, *variants.values()] for phase in ("prefill", "decode")
    ]
    assert min(speeds) > 1
    assert result["threads"] == 1 and result["peak_resident_bytes"] > demo.path().stat().st_size
    assert min(result["parts"].values()) > 0
    json.dumps(result)


def test_what_a_process_says_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere"):
        contest.Apart("hetero", "/nowhere.gguf", RunConfig())
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(FileError, match="could not load"):
        contest.Apart("llama.cpp", str(broken), 64, "f16", 1, False)


def test_a_process_that_dies() -> None:
    apart = contest.Apart("llama.cpp", DEMO, 64, "f16", 1, False)
    apart._process.kill()
    with pytest.raises(ResourceError, match="ended with status -9"):
        apart.ask("decode", [0], 1)
    apart.close()


@pytest.fixture(scope="module")
def hetero_alone() -> Iterator[contest.Hetero]:
    here = contest.Hetero(DEMO, RunConfig(context=64, threads=1))
    yield here
    here.close()


def test_stamps_change_nothing(hetero_alone: contest.Hetero) -> None:
    engine = hetero_alone.engine
    stamps = parts.Stamps(engine.pool)
    twin, model = parts.stamped(engine.model, stamps), engine.model
    logits = []
    for engine.model in (model, twin):
        engine.forget()
        logits += [engine.scores([5, 6, 7]), engine.scores([8]), engine.scores([9]), engine.scores([10])]
    engine.model = model
    assert all(map(np.array_equal, logits[:4], logits[4:]))
    assert {part for part, _, _ in stamps.spans} == {"attention", "experts", "dense", "head"}
    assert all(end > begin for _, begin, end in stamps.spans)


def test_a_recorded_pass_is_stamped_at_every_replay(hetero_alone: contest.Hetero) -> None:
    engine = copy(hetero_alone.engine)
    stamps = parts.Stamps(engine.pool)
    engine.model = parts.stamped(engine.model, stamps)
    engine.forget()
    engine.scores([1])
    spans = len(stamps.spans)
    assert spans == 2 * len(engine.model.blocks) + 1
    ends = stamps.spans[-1][2].copy()
    engine.scores([2])
    assert len(stamps.spans) == spans and stamps.spans[0][1] > ends, "replayed, with new times"


def test_time_by_part(hetero_alone: contest.Hetero) -> None:
    engine, model = hetero_alone.engine, hetero_alone.engine.model
    hetero_alone.decode([1, 2, 3], 2)
    cached = engine.tokens_cached
    seconds = parts.time_by_part(engine, [1, 2, 3])
    assert list(seconds) == list(parts.PARTS) and min(seconds.values()) > 0
    assert engine.model is model and engine.tokens_cached == cached + 3


def test_the_least_context_holds_the_parts(hetero_alone: contest.Hetero) -> None:
    """As many tokens as a bench of one generated token has room for."""
    context = hetero_alone.engine.context
    assert Bench(DEMO, prompt=1, generate=1, depth=context - 2).context == context
    seconds = hetero_alone.parts([7] * (context - 1))
    assert min(seconds.values()) > 0 and hetero_alone.engine.tokens_cached == context


def test_parts_add_up(hetero_alone: contest.Hetero, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks once a second, on both sides: attention, experts and so on take a second each."""
    now = iter(range(1000))
    monkeypatch.setattr(parts, "perf_counter", lambda: next(now))
    stamps = parts.Stamps(hetero_alone.engine.pool)
    monkeypatch.setattr(stamps, "_stamp", lambda pool: np.array([next(now) * 10**9]))
    for part in ("attention", "experts", "attention", "head"):
        assert stamps.call(part, lambda x, y: x - y, (3,), {"y": 1}) == 2
    assert stamps.seconds(last=3) == {"attention": 1, "experts": 1, "dense": 0, "head": 1, "other": 0}


@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_reads_every_stream_to_its_end(threads: int) -> None:
    """The threads combine all that they read: a bit that is set anywhere in a window shows."""
    with Pool(threads) as pool:
        reader = Reader(pool)
        assert reader.read() > 0
        assert reader.combined() == [1] * threads
        start = int(reader._arguments[0]) - reader._memory.ctypes.data
        share, window = int(reader._arguments[1]), int(reader._arguments[2])
        for thread in range(threads):
            for stream in range(STREAMS):
                end = start + thread * share + window + (stream + 1) * WINDOW_BYTES // STREAMS
                reader._memory[end - 32] |= 2 << stream
        reader.read()
        assert reader.combined() == [0b111] * threads


def test_tables_of_the_documentation_are_those_of_the_results() -> None:
    page = report.PAGE.read_text()
    assert report.filled(page) == page
    assert re.findall(r"<!-- (\w+) -->", page) == [x for name in report.TABLES for x in (name, "end")]


def test_a_table_from_a_result(tmp_path: Path) -> None:
    row = {"type": "Q4_K", "columns": 1, "bytes_per_second": 2e10, "flops_per_second": 3e11, "ratio_of_medians": 1.5}
    rows = [row | {"place": "memory", "share_of_read": 0.9}, row | {"place": "cache", "columns": 16}]
    where = {"machine": {"cpu": "C"}, "versions": {"numba": "1", "llama-cpp-python": "2"}, "commit": "c", "date": "d"}
    (tmp_path / "kernels.json").write_text(json.dumps({"threads": 2, "results": rows, **where}))
    filled = report.filled("a\n<!-- kernels -->\nold\n<!-- end -->\nb\n<!-- moe -->\nkept\n<!-- end -->", tmp_path)
    assert "| Q4_K | 20.0 | 90% | 1.50 | 300 | 1.50 |\n\nC, 2 threads," in filled
    assert "old" not in filled and "kept" in filled and filled.startswith("a\n") and "\nb\n" in filled


def test_turns_leave_out_disturbed_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third round takes ten times as long, because its threads waited."""
    clock, delay, calls = 0.0, 0.0, 0

    def run(seconds: float) -> None:
        nonlocal clock, delay, calls
        calls += 1
        slow = 9 * seconds if calls // 12 % 3 == 2 else 0.0
        clock, delay = clock + seconds + slow, delay + slow

    monkeypatch.setattr(turns, "perf_counter", lambda: clock)
    monkeypatch.setattr(turns, "waited", lambda: delay)
    contenders = {name: turns.Contender(lambda s=s: run(s)) for name, s in (("a", 0.02), ("b", 0.06), ("c", 0.04))}
    rounds = turns.take_turns(contenders, seconds=4.0)
    assert rounds.dropped > 0 and rounds.waited == 0
    assert rounds.medians() == pytest.approx({"a": 0.02, "b": 0.06, "c": 0.04})
    assert rounds.take("c") == pytest.approx(0.04)
    compared = rounds.compare("a")
    assert compared["best_other"] == "b" and compared["ratio_of_medians"] == pytest.approx(3)
    assert compared["median_of_ratios"] == pytest.approx(3)


def test_turns_end_where_no_round_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def run() -> None:
        nonlocal clock
        clock += 0.1

    monkeypatch.setattr(turns, "perf_counter", lambda: clock)
    monkeypatch.setattr(turns, "waited", lambda: clock / 2)
    rounds = turns.take_turns({"a": turns.Contender(run), "b": turns.Contender(run)}, seconds=1.0)
    assert len(rounds.times["a"]) == turns.LEAST_ROUNDS and rounds.waited == pytest.approx(0.5)
