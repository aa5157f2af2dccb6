"""What a session's last tests need, begun when it begins, in processes beside it.

A session keeps one core busy most of the time, with compiling. What can be done apart gets the rest of the machine, and
gives way to the tests:

- formats of the CPU are compiled into the kernels' cache;
- cases of tests/gpu_compile.py are compiled into Triton's cache, the last one first: a test compiles what it does not
  find there, so that the two meet;
- tests of Triton's interpreter run in their subprocess (tests/gpu_interpreter.py);
- modules that compute run in a second process, as many as it gets to (tests/beside.py).

Tests of the last three come after all others. None needs what was done ahead: where a process cannot be started, or
ends early, a test takes the time itself. All are ended with the session; those of one that was killed end soon.
"""

import json
import subprocess
import sys
import tempfile
from contextlib import suppress

import pytest

from tests import beside, gpu_interpreter
from tests.apart import ROOT, directory, give_way
from tests.gpu_interpreter import interpreted

_SOON, _LATER = 10, 19  # how much nicer than the session: formats are needed first
_STARTED = pytest.StashKey[list[subprocess.Popen]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=interpreted)


def compiles_for_gpu(item: pytest.Item) -> bool:
    return item.path.stem == "test_gpu_compile"


def pytest_sessionstart(session: pytest.Session) -> None:
    session.stash[_STARTED] = []
    if whole(session) and not passive(session):  # imports during the collection compile the other kernels meanwhile
        start(session, ["hetero.doctor_kernels", "--compile"], _SOON)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    if not passive(session):
        if others := forms(session.items)[:0:-1]:  # the first one is the session's
            start(session, ["tests.gpu_compile", "--ahead"], _LATER, json.dumps(others))
        gpu_interpreter.begin(session)
        if whole(session) and session.config.option.markexpr == "not soak":
            beside.begin(session)


def whole(session: pytest.Session) -> bool:
    """No files or tests were named."""
    return session.config.args_source is not pytest.Config.ArgsSource.ARGS


def passive(session: pytest.Session) -> bool:
    """Nothing will run, or all of it in this process, or it is one of several that share the tests."""
    config, option = session.config, session.config.option
    several = directory(config) is not None or hasattr(config, "workerinput")  # tests/apart.py; pytest-xdist
    return option.collectonly or option.usepdb or gpu_interpreter.in_place() or several


def forms(items: list[pytest.Item]) -> list[list[str | int]]:
    """Module, case, and capability of tests/test_gpu_compile.py's tests."""
    with_parameters = [getattr(item, "callspec", None) for item in items if compiles_for_gpu(item)]
    return [[spec.params[name] for name in ("module", "name", "capability")] for spec in with_parameters if spec]


def start(session: pytest.Session, command: list[str], nicer: int, given: str = "") -> None:
    """`given`: what it reads, from a file: it may be longer than an argument or a pipe can hold."""
    quiet = subprocess.DEVNULL
    with suppress(OSError), tempfile.TemporaryFile() as source:  # no memory, too many processes: then without
        source.write(given.encode())
        source.seek(0)
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdin=source, stdout=quiet, stderr=quiet)
        session.stash[_STARTED].append(process)
        give_way(process, nicer)


def pytest_sessionfinish(session: pytest.Session) -> None:
    for process in session.stash.get(_STARTED, []):
        process.kill()
        process.wait()
