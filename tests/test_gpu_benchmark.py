"""The GPU's benchmark, run where there is none: twins on the CPU at tiny sizes. No test looks at how fast it is."""

import io
import json
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch

import gpu_kernels
from benchmarks import gpu, gpu_attention, gpu_checks, gpu_compile, gpu_limits, gpu_products, gpu_shapes
from benchmarks.gpu_cases import run_cases
from benchmarks.gpu_setup import Setup, figure, nearer_bound

KEYS = {"case", "figure", "value", "unit", "bound_by", "share", "target", "passed"}


@pytest.fixture(scope="module")
def setup():
    threads = torch.get_num_threads()
    made = Setup.here(plain=True)
    yield made
    made.pool.close()
    torch.set_num_threads(threads)


def documents(cases: Any, after: str | None = None) -> tuple[int, list[dict[str, Any]]]:
    out = io.StringIO()
    status = run_cases(cases, out, after)
    return status, [json.loads(line) for line in out.getvalue().splitlines()]


def check_rows(rows: list[dict[str, Any]]) -> None:
    assert rows
    for row in rows:
        assert row.keys() >= KEYS, row
        assert isinstance(row["value"], float | int) and row["value"] == row["value"]
        assert row["passed"] is not False, row


def test_limits(setup: Setup) -> None:
    status, said = documents(gpu_limits.cases(setup))
    rows = [document["row"] for document in said if "row" in document]
    check_rows(rows)
    assert status == 0 and {"device read", "f16 rate", "bf16 rate"} < {row["figure"] for row in rows}
    assert gpu.limits_of({"limits": {"rows": rows}})["device read"] > 0


@pytest.mark.parametrize("name", ["linear Q4_K", "heads Q8_0", "ffn Q8_0-Q8_0-Q8_0", "rms_norm", "rope", "route"])
def test_a_check_passes_where_the_verb_is_right(setup: Setup, name: str) -> None:
    _, said = documents({name: gpu_checks.cases(setup)[name]})
    check_rows([document["row"] for document in said if "row" in document])
    assert not any("failed" in document for document in said)


def test_a_check_misses_its_target_where_the_verb_is_wrong(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        value = 0.0

        def __getattr__(self, name: str) -> Any:
            return getattr(gpu_checks.twins, name)

        def linear(self, device: Any, w: Any, x: Any, out: torch.Tensor) -> torch.Tensor:
            gpu_checks.twins.linear(device, w, x, out=out)
            out[0, 3] = self.value
            return out

    wrong = Wrong()
    monkeypatch.setattr(setup, "verbs", wrong)
    for wrong.value in (1e3, float("nan")):  # 1e3 is far off whatever the data, and farthest off of the fewest numbers
        (row,) = gpu_checks.check_linear(setup, "Q8_0")
        assert row["passed"] is False and row["worst"] == "T=1"


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_one_wrong_bit_of_the_cache_is_found(setup: Setup, monkeypatch: pytest.MonkeyPatch, kv: str) -> None:
    class Wrong:
        def __getattr__(self, name: str) -> Any:
            return getattr(gpu_checks.twins, name)

        def write_latent(self, *given: Any) -> None:
            gpu_checks.twins.write_latent(*given)
            layer, slots = given[-2:]
            layer.values.view(torch.int16 if kv == "f16" else torch.int8).view(-1, layer.width)[slots[3], 500] ^= 1

    near, bits = gpu_checks.check_latent(setup, kv)
    assert near["passed"] and bits["passed"] and bits["value"] == 0
    monkeypatch.setattr(setup, "verbs", Wrong())
    near, bits = gpu_checks.check_latent(setup, kv)
    assert near["passed"] and not bits["passed"] and bits["value"] > 0


@pytest.mark.parametrize("cases", [gpu_products.cases, gpu_attention.cases])
def test_timed_sections(setup: Setup, cases: Any) -> None:
    every = cases(setup)
    some = {name: every[name] for name in (next(iter(every)), list(every)[-1])}
    status, said = documents(some)
    check_rows([document["row"] for document in said if "row" in document])
    assert status == 0 and not any("failed" in document for document in said)


def test_a_failing_case_is_recorded_and_the_others_go_on() -> None:
    def fails():
        yield figure("first", 1.0, "s")
        raise ValueError("no such kernel")

    status, said = documents({"a": fails, "b": lambda: [figure("f", 2.0, "s")]})
    assert status == 0
    (failed,) = [document["failed"] for document in said if "failed" in document]
    assert failed["case"] == "a" and failed["error"] == "no such kernel" and "in fails" in failed["traceback"]
    assert [document["row"]["case"] for document in said if "row" in document] == ["a", "b"]
    _, said = documents({"a": fails, "b": lambda: [figure("f", 2.0, "s")]}, after="a")
    assert [document["begin"] for document in said if "begin" in document] == ["b"]


CHILD = """
import json, os, sys, time
after = sys.argv[sys.argv.index("--after") + 1] if "--after" in sys.argv else None
names = ["a", "b", "c", "d"]
print(json.dumps({"facts": {"gpu": {"name": "fake"}}}), flush=True)
for name in names[names.index(after) + 1 if after else 0:]:
    print(json.dumps({"begin": name}), flush=True)
    if name == "b":
        sys.stderr.write("illegal memory access"); sys.stderr.flush(); os.abort()
    if name == "d" and "hang" in sys.argv:
        time.sleep(1000)
    print(json.dumps({"row": {"case": name}}), flush=True)
    print(json.dumps({"end": name}), flush=True)
"""


def test_a_process_that_dies_is_followed_by_another() -> None:
    found = gpu.run_section("x", {}, 60.0, [sys.executable, "-c", CHILD])
    assert [row["case"] for row in found["rows"]] == ["a", "c", "d"] and not found["cut"]
    (failed,) = found["failed"]
    assert failed["case"] == "b" and "-6" in failed["error"] and "illegal memory access" in failed["traceback"]
    assert found["facts"]["gpu"]["name"] == "fake"


def time_is_over_at(line: bytes, patch: pytest.MonkeyPatch) -> None:
    """As sections see it, once a process has said that."""
    ahead, take = [0.0], gpu._take

    def taken(said: bytes, *more: Any) -> str | None:
        if said.strip() == line:
            ahead[0] = 3600.0
        return take(said, *more)

    patch.setattr(gpu, "_take", taken)
    patch.setattr(gpu, "monotonic", lambda: monotonic() + ahead[0])


def test_a_section_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    time_is_over_at(b'{"begin": "d"}', monkeypatch)
    found = gpu.run_section("x", {}, 600.0, [sys.executable, "-c", CHILD, "hang"])
    assert [row["case"] for row in found["rows"]] == ["a", "c"] and found["cut"]
    assert [one["case"] for one in found["failed"]] == ["b", "d"]


def test_a_section_whose_processes_all_die_says_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MOST_DEATHS", 1)
    found = gpu.run_section("x", {}, 60.0, [sys.executable, "-c", CHILD])
    assert [row["case"] for row in found["rows"]] == ["a"]
    assert [one["case"] for one in found["failed"]] == ["b", "b"] and "were not run" in found["failed"][1]["error"]


GRANDCHILD = """
import json, subprocess, sys
print(json.dumps({"begin": "a"}), flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(json.dumps({"row": {"case": "a", "pid": child.pid}}), flush=True)
print(7, flush=True)
child.wait()
"""


def test_what_a_section_has_started_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    time_is_over_at(b"7", monkeypatch)
    found = gpu.run_section("x", {}, 600.0, [sys.executable, "-c", GRANDCHILD])
    assert found["cut"] and found["rows"]
    until = monotonic() + 10
    while running(found["rows"][0]["pid"]) and monotonic() < until:
        sleep(0.05)
    assert not running(found["rows"][0]["pid"])


def running(pid: int) -> bool:
    """A zombie, which nobody may wait for in a container, does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_what_cannot_be_found_out_or_compiled_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> Any:
        raise FileNotFoundError("git")

    found = {"rows": [], "failed": [], "facts": {"gpu": None}, "cases": 1, "cut": False, "seconds": 1.0}
    given = list[float]()
    monkeypatch.setattr(gpu, "setting", lacking)
    monkeypatch.setattr(gpu_kernels.Device, "cuda", lacking)
    monkeypatch.setattr(gpu, "WARM", (sys.executable, "-c", ""))
    monkeypatch.setattr(gpu, "run_section", lambda name, setup, seconds: given.append(seconds) or {**found})
    options = gpu.parsed(["--out", str(tmp_path / "gpu.json"), "--limit", "200"])
    gpu.run(options)
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert "git" in document["setting"] and [*document["sections"]] == ["compile", *gpu.SECTIONS]
    assert document["sections"]["compile"]["failed"][0]["error"] == "git" and document["facts"] == {"gpu": None}
    left = 200 - 7 * gpu.RESERVED  # of the second section: seven come after it
    assert given[0] == 30 and left - 10 < given[1] <= left
    assert "compile: " in gpu.table(document)


def test_suggested_crossover() -> None:
    times = {1: (1.0, 5.0), 4: (3.0, 5.0), 8: (5.2, 5.0), 16: (9.0, 5.1), 32: (1.0, 2.0)}
    found = {tokens: {"vector": a, "tile": b} for tokens, (a, b) in times.items()}
    assert gpu_products.suggested(found, "vector", "tile") == 8
    assert gpu_products.suggested(found, "vector", "slabs") == 0


def test_the_nearer_bound(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nearer_bound(setup, 1.0, 1.0, 1.0) == ("", None)
    monkeypatch.setattr(setup, "limits", {"device read": 100.0, "bf16 rate": 1000.0})
    assert nearer_bound(setup, 4.0, 200.0, 1000.0) == ("device read", 0.5)
    assert nearer_bound(setup, 4.0, 100.0, 3000.0) == ("bf16 rate", 0.75)


def test_targets_of_a_product(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "limits", {"device read": 1e12, "bf16 rate": 1e15})
    monkeypatch.setattr(setup, "plain", False)
    nbytes = 129280 * 7168 * 210 // 256
    for share, torch_seconds, passed in ((0.7, 3.0, True), (0.6, 3.0, False), (0.7, 2.0, False)):
        ours = nbytes / 1e12 / share
        found = {"hetero": ours, "torch": torch_seconds * ours}
        row = gpu_products.product_figure(setup, gpu_products.HEAD, 1, nbytes, found)
        assert row["passed"] is passed and row["share"] == pytest.approx(share, rel=1e-2), row
        assert row["bound_by"] == "device read" and row["times_torch"] == pytest.approx(torch_seconds)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.main(["--only", "limits"]) == 1
    assert "CUDA_VISIBLE_DEVICES" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.parsed(["--only", "nothing"])


@pytest.mark.soak
def test_every_section_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--plain", "--out", str(out), "--limit", "1500"]) == 0
    document = json.loads(out.read_text())
    assert {"machine", "versions", "commit", "date", "facts", "sections", "seconds"} <= document.keys()
    assert [*document["sections"]] == [*gpu.SECTIONS]
    for name, section in document["sections"].items():
        assert not section["failed"], (name, section["failed"])
        check_rows(section["rows"])
    assert "0 missed, 0 cases failed" in capsys.readouterr().out


def test_what_engines_and_the_probe_launch_is_walked_through_without_data() -> None:
    device = gpu_compile.CompilingDevice(90, 132, share=-1, of=1 << 30)  # none is its share
    every, seen = gpu_shapes.cases(gpu_compile.CompilingSetup(device)), list[int]()
    assert {"slice", "demo", "rate of attention"} < every.keys()
    with gpu_compile.without_values():
        for name in ("rate of linear Q6_K", "rate of attention", "rate of attention", "demo"):
            assert list(every[name]()) == []
            seen.append(len(device.seen))
    assert 0 < seen[0] < seen[1] == seen[2] < seen[3] and device.made == 0


@pytest.mark.soak
def test_kernels_of_the_sections_compile() -> None:
    """A share of them: all of them are 490."""
    command = [sys.executable, "-m", "benchmarks.gpu_compile", "90", "132", "7", "25"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["compiled"] > 5 and not found["failed"]
