"""A second process that takes modules off the session's hands.

A session keeps one core busy, and CI has two. So a process beside the session runs the modules of `MODULES` too, from
the first one on, while the session runs all the others and then these, from the last one on. Each belongs to who comes
first: the session runs those that the process has not begun, and reports what the process found in the others
(tests/apart.py). So neither waits for the other but for one module at the end, however fast each of them is.

In the list stand modules that compute: what a deadline, a terminal, the machine's idle time or memory decides stays
with the session. Those that take longest come early. Only the whole short tier is run so, not single files, long tests,
or a debugger's session.
"""

from contextlib import suppress
from pathlib import Path

import pytest

from tests.apart import Apart, directory

MODULES = (
    "test_machines",  # uses few kernels: the session compiles meanwhile what the others need
    "test_hybrid",
    "test_quantized_forward",
    "test_rehearsal",
    "test_synthetic",
    "test_forward",
    "test_placement_edited",
    "test_graph",
    "test_plan_command",
    "test_experts_nodes",
    "test_placement_properties",
    "test_gpu_memory",
    "test_recorded",
    "test_tokenizer",
    "test_scratch",
    "test_nodes",
    "test_phases",
    "test_hostile_documents",
    "test_linear",
    "test_oracles",
    "test_presets",
    "test_program",
    "test_gpu_compile",  # last: its cases are compiled meanwhile (tests/ahead.py)
)
_NICER = 10  # the session's tests come first
_RUN = pytest.StashKey[Apart]()
_OURS = pytest.StashKey[dict[Path, bool]]()  # of each module that has been begun: whether this process runs it


def shared(item: pytest.Item) -> bool:
    return item.path.stem in MODULES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: -MODULES.index(item.path.stem) if shared(item) else -len(MODULES))


def begin(session: pytest.Session) -> None:
    """Starts the process, if there is something for it."""
    items = [item for item in session.items if shared(item)]
    items.sort(key=lambda item: MODULES.index(item.path.stem))
    if not items:
        return
    with suppress(OSError):  # no memory, too many processes: then without
        session.stash[_RUN] = Apart(session, items, {}, _NICER)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if run := session.stash.get(_RUN, None):
        run.close()


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    run = item.session.stash.get(_RUN, None)
    place = run.directory if run else directory(item.config)
    if place is None or not shared(item):
        return None
    ours = item.session.stash.setdefault(_OURS, {})
    if item.path not in ours:
        ours[item.path] = claim(place / item.path.stem)
    if ours[item.path]:
        return None
    if run:
        run.report(item)
    return True


def claim(path: Path) -> bool:
    """Whether this process came first."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
