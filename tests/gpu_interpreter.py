"""Kernels run by Triton's interpreter, on CPU tensors, in a process of their own.

TRITON_INTERPRET must be set before a kernel is declared, and must not touch the tests that compile kernels. A module of
interpreter tests imports gpu_kernels as any other and says, below its imports,

    pytestmark = pytest.mark.interpreter

    def test_scale_equals_its_twin() -> None:
        device = Device.interpreter()
        ...

All selected tests of marked modules (the session's, not only one module's) then run in one subprocess with
TRITON_INTERPRET=1, which the first of them starts; each is reported where it stands in the ordinary run, with the
traceback and output it had there. Fixtures, parameters, -k and further marks (soak) work as ever. Only whole modules
are marked: keep compile tests (tests/gpu_compile.py) in another. With TRITON_INTERPRET=1 in the environment (for --pdb,
say) the tests run in place.

What the interpreter does not model: warps, stages, shared memory, races, barriers, alignment. It runs one program after
another, about 0.15 ms per operation on 1,024 elements: use few, fat programs. Its bfloat16 arithmetic is wrong and its
conversion to bfloat16 truncates; inline assembly raises. `Device.launch` refuses here too what CUDA would: grids beyond
the limits, wrong argument counts, integers beyond int64.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

VARIABLE = "TRITON_INTERPRET"
_ROLE = "HETERO_INTERPRETER_TESTS"  # set in the subprocess only: the file with the tests to run; reports go beside it
_Reports = dict[str, list[dict]]
_REPORTS = pytest.StashKey[_Reports]()


def interpreted(item: pytest.Item) -> bool:
    module = item.getparent(pytest.Module)
    return module is not None and module.get_closest_marker("interpreter") is not None


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """In the ordinary process: report what the subprocess reported of this test."""
    if VARIABLE in os.environ or not interpreted(item):
        return None
    if _REPORTS not in item.session.stash:
        item.session.stash[_REPORTS] = run_apart(item.session)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in item.session.stash[_REPORTS].get(item.nodeid, []):
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        if isinstance(report.longrepr, list):  # file, line, reason of a skip: JSON has no tuples
            report.longrepr = tuple(report.longrepr)
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def run_apart(session: pytest.Session) -> _Reports:
    """Runs the session's interpreter tests in one subprocess -> the serialized reports of each."""
    items = [item for item in session.items if interpreted(item)]
    modules = sorted({str(item.path) for item in items})
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", *modules]
    with tempfile.TemporaryDirectory() as directory:
        wanted = Path(directory) / "tests.json"
        wanted.write_text(json.dumps([item.nodeid for item in items]))
        environment = os.environ | {VARIABLE: "1", _ROLE: str(wanted)}
        ended = subprocess.run(command, cwd=session.config.rootpath, env=environment, capture_output=True, text=True)
        written = list(_written(wanted))
    reports: _Reports = {item.nodeid: [] for item in items}
    for data in written:
        reports[data["nodeid"]].append(data)
    for item in items:
        if not any(data["when"] == "teardown" for data in reports[item.nodeid]):
            reports[item.nodeid].append(_died(session, item, ended))
    return reports


def _written(wanted: Path) -> Iterator[dict]:
    lines = wanted.with_suffix(".reports")
    if lines.exists():
        yield from (json.loads(line) for line in lines.read_text().splitlines())


def _died(session: pytest.Session, item: pytest.Item, ended: subprocess.CompletedProcess[str]) -> dict:
    """The report of a test that the subprocess never finished."""
    text = f"the interpreter's process ended with status {ended.returncode} before this test:\n"
    text += ended.stdout[-8000:] + ended.stderr[-8000:]
    report = pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
    return session.config.hook.pytest_report_to_serializable(config=session.config, report=report)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the subprocess: the tests that were asked for, no others."""
    if _ROLE in os.environ:
        wanted = set(json.loads(Path(os.environ[_ROLE]).read_text()))
        items[:] = [item for item in items if item.nodeid in wanted]


class _Writer:
    """In the subprocess: one line of JSON per report."""

    def __init__(self, config: pytest.Config, path: Path):
        self.config, self.path = config, path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        with self.path.open("a") as lines:
            lines.write(json.dumps(data) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if _ROLE in os.environ:
        config.pluginmanager.register(_Writer(config, Path(os.environ[_ROLE]).with_suffix(".reports")))
