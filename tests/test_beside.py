"""Modules that two processes share run once each, and are reported by the session (tests/beside.py)."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tests import beside

ROOT = Path(__file__).parent.parent
HOOKS = """
from tests import apart, beside

beside.MODULES = ("test_theirs", "test_left", "test_ours")

def pytest_configure(config):
    for hooks in (apart, beside):
        config.pluginmanager.register(hooks)

def pytest_runtestloop(session):
    if apart.directory(session.config) is None:
        beside.begin(session)
"""
STEPS = """
import os, time
from pathlib import Path

def reach(step):
    with open("log", "a") as log:
        log.write(f"{step} {os.getpid()}\\n")

def wait_for(step):
    end = time.monotonic() + 60
    while step not in Path("log").read_text().split():
        assert time.monotonic() < end, step
        time.sleep(0.01)
"""
ALONE = """
from steps import *
def test_alone():
    reach("alone")
    wait_for("theirs")
"""
OURS = """
from steps import *
def test_ours():
    reach("ours")
def test_more():
    reach("more")
"""
THEIRS = """
import pytest
from steps import *
def test_theirs():
    reach("theirs")
    wait_for("ours")
def test_skipped():
    pytest.skip("for a reason")
def test_fails():
    assert False, "what it says"
def test_dies():
    os._exit(3)
"""
LEFT = """
from steps import *
def test_left():
    reach("left")
"""


def test_each_module_runs_in_the_process_that_comes_first(tmp_path: Path) -> None:
    written = {"conftest": HOOKS, "steps": STEPS, "test_alone": ALONE, "test_ours": OURS, "test_theirs": THEIRS}
    for name, text in (written | {"test_left": LEFT}).items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "log").touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=out.xml", "--rootdir=."]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    cases = {case.get("name"): case for case in ElementTree.parse(tmp_path / "out.xml").iter("testcase")}
    assert {name: [each.tag for each in case] for name, case in cases.items()} == {
        "test_alone": [],
        "test_ours": [],
        "test_more": [],
        "test_left": [],
        "test_theirs": [],
        "test_skipped": ["skipped"],
        "test_fails": ["failure"],
        "test_dies": ["failure"],
    }
    assert "what it says" in (cases["test_fails"][0].text or "")
    assert "ended with status 3 before this test" in (cases["test_dies"][0].text or "")
    steps, processes = zip(*(line.split() for line in (tmp_path / "log").read_text().splitlines()), strict=True)
    ran = dict(zip(steps, processes, strict=True))
    assert sorted(steps) == ["alone", "left", "more", "ours", "theirs"], "once each"
    assert ran["alone"] == ran["ours"] == ran["more"] == ran["left"] != ran["theirs"]


def test_the_list_is_of_modules() -> None:
    assert len(set(beside.MODULES)) == len(beside.MODULES) > 0
    for name in beside.MODULES:
        assert (ROOT / "tests" / f"{name}.py").exists(), name
