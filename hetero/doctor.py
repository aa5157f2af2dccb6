"""`hetero doctor`: what this machine has, and whether every kernel computes on it what it should.

Compiled code that meets a CPU or a system it does not fit can end the process, so kernels run in another one
(doctor_kernels.py). When that dies, the check that it had begun is broken, and a new process goes on after it. Nothing
here imports cpu_kernels as it loads: a numba that cannot be imported is a finding too.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from threading import Timer
from time import perf_counter
from typing import IO, Any

from hetero.doctor_kernels import UNLIKELY, kernel_remedy
from hetero.environment import ENVIRONMENT
from hetero.system import SYSTEM, Finding
from hetero.terminal import Screen, printable

KERNELS = (sys.executable, "-P", "-m", "hetero.doctor_kernels")
MOST_DEATHS = 5
PATIENCE = 300.0  # seconds for one check; the slowest compiles for a minute
_CAUSES = {
    "SIGILL": "an instruction that this CPU does not have",
    "SIGABRT": "the compiler or a library gave up",
    "SIGKILL": "ended from outside, as the kernel does where memory is short",
}
Step = Callable[[int, int, str], None]


def examine(screen: Screen, kernels: Sequence[str] = ()) -> dict[str, Any]:
    """The document that `hetero doctor --json` prints. `kernels`: the command that runs them."""
    started, kernels = perf_counter(), kernels or KERNELS
    with screen.err.status("looking around") as status, _compiling(kernels):  # seen on a terminal only

        def step(done: int, total: int, name: str) -> None:
            status.update(f"{done} of {total} kernels are checked; now {name}")

        findings = [_guarded(check) for check in (*SYSTEM, *ENVIRONMENT)]
        findings += kernel_findings(kernels, step)
    counts = {status: sum(finding.status == status for finding in findings) for status in ("ok", "warning", "broken")}
    seconds = round(perf_counter() - started, 1)
    return {**counts, "seconds": seconds, "findings": [asdict(finding) for finding in findings]}


def describe(document: dict[str, Any]) -> str:
    """The text form of `examine`'s document: a line for each finding, and one for all."""
    lines = []
    for finding in document["findings"]:
        remedy = f" -> {finding['remedy']}" if finding["remedy"] else ""
        lines.append(printable(f"{finding['status']:8} {finding['name']:15} {finding['found']}{remedy}"))
    broken, warnings = document["broken"], document["warning"]
    verdict = f"{broken} broken" if broken else "nothing is broken"
    warned = f", {warnings} warning{'s' * (warnings > 1)}" if warnings else ""
    return "\n".join([*lines, f"{verdict}{warned} ({document['seconds']:.0f} s)"])


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        name = check.__name__.replace("_", " ")
        return Finding(name, "broken", f"cannot be told: {type(error).__name__}: {error}", "please report it")


@contextmanager
def _compiling(kernels: Sequence[str]) -> Iterator[None]:
    """Another core compiles formats meanwhile; whether it can is no finding."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*kernels, "--compile"], env=_environment(), stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """So that the other process finds this very package."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def kernel_findings(kernels: Sequence[str], step: Step, patience: float = PATIENCE) -> Iterator[Finding]:
    """Of each check that a process of this command runs, however often it dies."""
    left: list[str] | None = None  # None: not known yet
    done = 0
    for _ in range(MOST_DEATHS):
        current = None
        with tempfile.TemporaryFile("w+") as errors, _Process([*kernels, *(left or ())], errors, patience) as process:
            for document in process.documents():
                if "checks" in document:
                    left = document["checks"] if left is None else left
                elif "begin" in document:
                    current = document["begin"]
                    step(done, done + len(left or ()), current)
                elif left and current is not None and document.get("name") == current:
                    left.remove(current)
                    done, current = done + 1, None
                    yield Finding(**document)
            end = process.end()
            if end == "" and not left and left is not None:
                return
            yield _death(current or "kernels", end, errors)
        if current is None or left is None:
            break
        left.remove(current)
        done += 1
        if not left:
            return
    if left:
        yield Finding("kernels", "broken", f"not checked: {', '.join(left)}", "see the lines above")


def _death(name: str, end: str, errors: IO[str]) -> Finding:
    errors.seek(0)
    last = next((line.strip() for line in reversed(errors.read().splitlines()) if line.strip()), "")
    found = f"its process {end or 'ended too early'}" + (f": {last}" if last else "")
    if "SIGKILL" in end:
        return Finding(name, "broken", found, "free some memory, and try again")
    return Finding(name, "broken", found, UNLIKELY if not end or "status" in end else kernel_remedy())


class _Process:
    """The other process; killed when it says nothing for `patience` seconds."""

    def __init__(self, command: Sequence[str], errors: IO[str], patience: float):
        self._patience, self._hung = patience, False
        self._process = subprocess.Popen(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def documents(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        while True:
            watch = Timer(self._patience, self._give_up)
            watch.daemon = True
            watch.start()
            line = self._process.stdout.readline()
            watch.cancel()
            if not line:
                return
            with suppress(ValueError):
                document = json.loads(line)
                if isinstance(document, dict):
                    yield document

    def _give_up(self) -> None:
        self._hung = True
        self._process.kill()

    def end(self) -> str:
        """How it ended; "" for well."""
        status = self._process.wait()
        if self._hung:
            return f"did nothing for {self._patience:.0f} s and was stopped"
        if status >= 0:
            return f"ended with status {status}" if status else ""
        name = signal.Signals(-status).name
        return f"died by {name}" + (f" ({_CAUSES[name]})" if name in _CAUSES else "")
