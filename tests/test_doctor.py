"""The doctor: kernels that are wrong, processes that die, and the command."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cli
import cpu_kernels
from cpu_kernels.faults import WorkerFault
from hetero import doctor, doctor_kernels, kernel_checks
from hetero.doctor import describe, examine, kernel_findings
from hetero.errors import ResourceError
from hetero.system import Finding
from hetero.terminal import Screen

# ---- kernels ---------------------------------------------------------------------------------------------------------

SLOW = {"bundled model", "bandwidth"}


@pytest.mark.parametrize("name", [name for name in kernel_checks.checks() if name not in SLOW])
def test_kernels_are_right(name: str) -> None:
    assert doctor_kernels.run_check(name, kernel_checks.checks()[name]).status == "ok"


def one_part_in_thousand_off(function: Callable) -> Callable:
    def wrong(*arguments: object, **options: object) -> object:
        result = function(*arguments, **options)
        if isinstance(result, tuple):  # the router: other experts
            return result[0][:, ::-1], result[1]
        return result * np.float32(1.001)

    return wrong


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("dequantize", "weights Q4_0"),
        ("linear", "weights Q4_0"),
        ("linear", "weights F32"),
        ("embed", "heads"),
        ("linear_heads", "heads"),
        ("linear_heads_transposed", "heads"),
        ("rms_norm", "norm"),
        ("route", "router"),
        ("read_cache", "cache f32"),
        ("read_cache", "cache q8_0"),
        ("mla_absorbed", "absorbed f16"),
        ("mla_expanded", "expanded f32"),
    ],
)
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch, verb: str, name: str) -> None:
    monkeypatch.setattr(cpu_kernels, verb, one_part_in_thousand_off(getattr(cpu_kernels, verb)))
    found = doctor_kernels.run_check(name, kernel_checks.checks()[name])
    assert found.status == "broken" and "generic" in found.remedy


def test_wrong_experts_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_residual(pool, routed, x, ids, weights, shared, residual):
        return right(pool, routed, x, ids, weights, shared)

    right = cpu_kernels.routed_experts
    monkeypatch.setattr(cpu_kernels, "routed_experts", without_residual)
    assert doctor_kernels.run_check("experts", kernel_checks.check_experts).status == "broken"


def test_a_kernel_that_does_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "rope", lambda *arguments: None)
    assert doctor_kernels.run_check("rope", kernel_checks.check_rope).status == "broken"


def test_nan_is_wrong() -> None:
    with pytest.raises(kernel_checks.WrongNumbers, match="nan"):
        kernel_checks.compare("it", np.array([1.0, np.nan]), np.ones(2))


def test_an_exception_is_a_line() -> None:
    def fails() -> str:
        raise AttributeError("no such intrinsic")

    found = doctor_kernels.run_check("it", fails)
    assert (found.status, found.found) == ("broken", "AttributeError: no such intrinsic")


def test_a_full_disk_is_not_the_kernels_fault() -> None:
    def fail(number: int) -> str:
        raise OSError(number, os.strerror(number))

    full = doctor_kernels.run_check("experts", lambda: fail(errno.ENOSPC))
    assert full.status == "broken" and "No space left" in full.found
    assert full.remedy.startswith("make room") and "XDG_CACHE_HOME" in full.remedy
    assert doctor_kernels.run_check("experts", lambda: fail(errno.EIO)).remedy != full.remedy


def test_an_error_of_ours_brings_its_own_remedy() -> None:
    def refuses() -> str:
        raise ResourceError("0.5 GiB are needed", "0.3 GiB are free", "free memory")

    found = doctor_kernels.run_check("it", refuses)
    assert (found.found, found.remedy) == ("0.5 GiB are needed; 0.3 GiB are free", "free memory")


def test_bandwidth_takes_no_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetero.free_memory.free_memory", lambda: 600 << 20)
    assert kernel_checks.check_bandwidth() == "not measured: 600.00 MiB of memory are free"


def test_a_signal_in_a_kernel_is_a_line_with_the_way_around_it() -> None:
    def dies() -> str:
        raise WorkerFault("cpu_kernels.product._products_job", 1, "SIGILL", 0x7F, None)

    found = doctor_kernels.run_check("it", dies)
    assert found.status == "broken" and "_products_job died on thread 1" in found.found and "SIGILL" in found.found
    assert "NUMBA_CPU_NAME" in found.remedy


def test_the_bundled_model_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_checks, "ANSWER", "Rome")
    found = doctor_kernels.run_check("bundled model", kernel_checks.check_model)
    assert found.status == "broken" and "'The capital of France is Paris.', without 'Rome'" in found.found


def test_the_real_process() -> None:
    found = list(kernel_findings([*doctor.KERNELS, "norm", "cache f32"], lambda *step: None))
    assert [(finding.name, finding.status) for finding in found] == [("norm", "ok"), ("cache f32", "ok")]


# ---- the other process dies -----------------------------------------------------------------------------------------

FAKE = """
import json, os, signal, sys, time
names = sys.argv[2:] or ["a", "b", "c", "d"]
deeds = json.loads(sys.argv[1])
if "--compile" in names:
    time.sleep(60)
def say(**document):
    print(json.dumps(document), flush=True)
if "begin" in deeds:
    os.kill(os.getpid(), deeds["begin"])
say(checks=names)
for name in names:
    say(begin=name)
    print("a library says something")
    if name in deeds:
        print("LLVM ERROR: cannot select", file=sys.stderr, flush=True)
        if deeds[name] == "hang":
            time.sleep(60)
        if deeds[name] == "exit":
            os._exit(0)
        os.kill(os.getpid(), deeds[name])
    say(name=name, status="ok", found="fine")
"""


def fake(**deeds: object) -> list[str]:
    """A process with the checks a, b, c, d, some of which end it."""
    return [sys.executable, "-c", FAKE, json.dumps(deeds)]


def outcome(command: list[str], patience: float = 60.0) -> dict[str, Finding]:
    found = list(kernel_findings(command, lambda *step: None, patience))
    assert len({finding.name for finding in found}) == len(found)
    return {finding.name: finding for finding in found}


def test_nothing_dies() -> None:
    steps: list[tuple] = []
    found = list(kernel_findings(fake(), lambda *step: steps.append(step)))
    assert [(finding.name, finding.status) for finding in found] == [(name, "ok") for name in "abcd"]
    assert steps == [(0, 4, "a"), (1, 4, "b"), (2, 4, "c"), (3, 4, "d")]


def test_a_death_is_one_line_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    found = outcome(fake(b=4, d=6))
    assert [found[name].status for name in "abcd"] == ["ok", "broken", "ok", "broken"]
    assert "SIGILL (an instruction that this CPU does not have): LLVM ERROR: cannot select" in found["b"].found
    assert "SIGABRT" in found["d"].found and "NUMBA_CPU_NAME=generic" in found["b"].remedy
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    assert outcome(fake(b=4))["b"].remedy.startswith("unset NUMBA_CPU_NAME, or set it to generic")


def test_other_ends() -> None:
    assert "SIGKILL" in outcome(fake(a=9))["a"].found and "memory" in outcome(fake(a=9))["a"].remedy
    ended = outcome(fake(c="exit"))
    assert ended["c"].found.startswith("its process ended too early") and ended["d"].status == "ok"
    start = outcome(fake(begin=4))
    assert list(start) == ["kernels"] and "SIGILL" in start["kernels"].found


def test_a_check_that_hangs_is_ended() -> None:
    found = outcome(fake(b="hang"), patience=3.0)
    assert "did nothing for 3 s" in found["b"].found and found["d"].status == "ok"


def test_it_gives_up_where_everything_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MOST_DEATHS", 2)
    found = outcome(fake(a=4, b=4, c=4, d=4))
    assert list(found) == ["a", "b", "kernels"] and found["kernels"].found == "not checked: c, d"


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    def call(command: list[str], *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(doctor, "KERNELS", command)
        monkeypatch.setattr(sys, "argv", ["hetero", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return call


def test_json(run: Callable[..., tuple[int, str]]) -> None:
    status, out = run(fake(), "--json")
    document = json.loads(out)
    assert status == 0 and document["broken"] == 0
    assert set(document) == {"ok", "warning", "broken", "seconds", "findings"}
    for finding in document["findings"]:
        assert set(finding) == {"name", "status", "found", "remedy"} and finding["found"]
        assert bool(finding["remedy"]) == (finding["status"] != "ok")
    assert {"cpu", "cores", "memory", "GPU", "kernel cache", "a"} <= {
        finding["name"] for finding in document["findings"]
    }
    assert sum(document[status] for status in ("ok", "warning", "broken")) == len(document["findings"])


def test_a_line_each_and_status_1(run: Callable[..., tuple[int, str]]) -> None:
    status, out = run(fake(b=4))
    lines = out.splitlines()
    assert status == 1
    assert any(line.startswith("broken   b ") and " -> please report it" in line for line in lines)
    assert any(line.startswith("ok       c ") for line in lines) and lines[-1].startswith("1 broken")


def test_a_check_of_the_system_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def swap() -> Finding:
        raise ValueError("strange\x1b[2J file")

    monkeypatch.setattr(doctor, "SYSTEM", (swap,))
    document = examine(Screen(), fake())
    assert document["broken"] == 1 and document["findings"][0]["name"] == "swap"
    assert "\x1b" not in describe(document) and "strange" in describe(document)


def test_the_compiling_process_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def noted(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    examine(Screen(), fake())
    assert len(started) == 2 and all(process.returncode is not None for process in started)


def test_a_numba_that_cannot_be_imported_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('no such symbol')\n")
    command = [sys.executable, "cli.py", "doctor", "--json"]
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=Path(cli.__file__).parent, env=environ, capture_output=True, text=True)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1 and not done.stderr
    assert findings["cpu"]["status"] == findings["kernels"]["status"] == "broken"
    assert "ImportError: no such symbol" in findings["kernels"]["found"] and findings["memory"]["status"] != "broken"
