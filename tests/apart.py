"""Tests that run in a subprocess and are reported where they stand in the session, with the traceback and output they
had there. Fixtures, parameters, -k and marks work as ever."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_ROLE = "HETERO_TESTS_APART"  # set in the subprocess only: the file with the tests to run; reports go beside it
_DIRECTORY = pytest.StashKey[Path]()
_PAUSE = 0.05  # between two looks for a report; seconds


def directory(config: pytest.Config) -> Path | None:
    """In a subprocess: what it shares with the session."""
    return config.stash.get(_DIRECTORY, None)


def give_way(process: subprocess.Popen, nicer: int) -> None:
    """To the session's own tests, by so much; not where it has ended already."""
    with suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, process.pid, min(os.getpriority(os.PRIO_PROCESS, 0) + nicer, 19))


class Apart:
    """Some of the session's tests in one subprocess, in this order, from now on. `environment`: what is set there."""

    def __init__(self, session: pytest.Session, items: list[pytest.Item], environment: dict[str, str], nicer: int):
        self.session = session
        self._temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self._temporary.name)
        self._reports: dict[str, list[dict]] = {item.nodeid: [] for item in items}
        self._read = 0  # bytes of the reports' file
        wanted = self.directory / "tests.json"
        wanted.write_text(json.dumps([*self._reports]))
        modules = dict.fromkeys(str(item.path) for item in items)
        command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", *modules]
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=session.config.rootpath,
                env=os.environ | environment | {_ROLE: str(wanted)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        give_way(self.process, nicer)

    @property
    def _output(self) -> Path:
        return self.directory / "tests.output"

    def report(self, item: pytest.Item) -> None:
        """What the subprocess reported of this test, once it has run."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in self._reports_of(item):
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            if isinstance(report.longrepr, list):  # file, line, reason of a skip: JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _reports_of(self, item: pytest.Item) -> list[dict]:
        while True:
            ended = self.process.poll() is not None
            self._look()
            found = self._reports[item.nodeid]
            if any(data["when"] == "teardown" for data in found):
                return found
            if ended:
                return [*found, self._died(item)]
            time.sleep(_PAUSE)

    def _look(self) -> None:
        """Takes the reports that are new, as far as their lines are complete."""
        with suppress(FileNotFoundError), (self.directory / "tests.reports").open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole + newline)
            for line in whole.splitlines():
                data = json.loads(line)
                self._reports[data["nodeid"]].append(data)

    def _died(self, item: pytest.Item) -> dict:
        """The report of a test that the subprocess never finished."""
        text = f"the process of these tests ended with status {self.process.returncode} before this test:\n"
        text += self._output.read_text()[-16000:]
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
        return self.session.config.hook.pytest_report_to_serializable(config=self.session.config, report=report)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._temporary.cleanup()


class _Writer:
    """In the subprocess: one line of JSON per report, as long as the session lives that wants them."""

    def __init__(self, config: pytest.Config, path: Path):
        self.config, self.path, self.session = config, path, os.getppid()

    def pytest_runtest_setup(self) -> None:
        if os.getppid() != self.session:
            pytest.exit("the session that wants these tests has ended")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        with self.path.open("a") as lines:
            lines.write(json.dumps(data) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if role := os.environ.pop(_ROLE, None):  # processes that tests start have another
        config.stash[_DIRECTORY] = Path(role).parent
        config.pluginmanager.register(_Writer(config, Path(role).with_suffix(".reports")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the subprocess: the tests that were asked for, no others."""
    if shared := directory(config):
        wanted = {name: at for at, name in enumerate(json.loads((shared / "tests.json").read_text()))}
        items[:] = sorted((item for item in items if item.nodeid in wanted), key=lambda item: wanted[item.nodeid])
