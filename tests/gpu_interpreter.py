"""Kernels run by Triton's interpreter, on CPU tensors, in a process of their own.

TRITON_INTERPRET must be set before a kernel is declared, and must not touch the tests that compile kernels. A module of
interpreter tests imports gpu_kernels as any other and says, below its imports,

    pytestmark = pytest.mark.interpreter

    def test_scale_equals_its_twin() -> None:
        device = Device.interpreter()
        ...

All selected tests of marked modules (the session's, not only one module's) then run in one subprocess with
TRITON_INTERPRET=1, which begins with the session (tests/ahead.py) or with the first of them; each is reported where it
stands in the ordinary run, with the traceback and output it had there. Fixtures, parameters, -k and further marks
(soak) work as ever. Only whole modules are marked: keep compile tests (tests/gpu_compile.py) in another. With
TRITON_INTERPRET=1 in the environment (for --pdb, say) the tests run in place.

What the interpreter does not model: warps, stages, shared memory, races, barriers, alignment. It runs one program after
another, about 0.15 ms per operation on 1,024 elements: use few, fat programs. Its bfloat16 arithmetic is wrong and its
conversion to bfloat16 truncates; inline assembly raises. `Device.launch` refuses here too what CUDA would: grids beyond
the limits, wrong argument counts, integers beyond int64.
"""

import os

import pytest

from tests.apart import Apart

VARIABLE = "TRITON_INTERPRET"
_NICER = 19  # it gives way to the tests of the session that run meanwhile
_RUN = pytest.StashKey[Apart]()


def interpreted(item: pytest.Item) -> bool:
    module = item.getparent(pytest.Module)
    return module is not None and module.get_closest_marker("interpreter") is not None


def in_place() -> bool:
    return VARIABLE in os.environ


def begin(session: pytest.Session) -> None:
    """Starts the subprocess, if there is a test for it."""
    items = [item for item in session.items if interpreted(item)]
    if items and _RUN not in session.stash:
        session.stash[_RUN] = Apart(session, items, {VARIABLE: "1"}, _NICER)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if run := session.stash.get(_RUN, None):
        run.close()


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """In the ordinary process: report what the subprocess reported of this test."""
    if in_place() or not interpreted(item):
        return None
    begin(item.session)
    item.session.stash[_RUN].report(item)
    return True
