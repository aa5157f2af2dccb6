"""Tests of interpreter modules are reported as they went in the subprocess (tests/gpu_interpreter.py)."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
HOOKS = """
from tests import apart, gpu_interpreter

def pytest_configure(config):
    for hooks in (apart, gpu_interpreter):
        config.pluginmanager.register(hooks)
"""
MODULE = """
import os, pytest
pytestmark = pytest.mark.interpreter

@pytest.fixture
def variable():
    return os.environ.get("TRITON_INTERPRET")

@pytest.mark.parametrize("value", ["1", "0"])
def test_variable(variable, value):
    assert variable == value, "what it says"

def test_skipped():
    pytest.skip("for a reason")

def test_not_asked_for():
    raise AssertionError

def test_dies():
    os._exit(3)

def test_after():
    pass
"""
OTHER = "import os\ndef test_in_this_process():\n    assert 'TRITON_INTERPRET' not in os.environ\n"


def test_outcomes(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(HOOKS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = interpreter\n")
    (tmp_path / "test_one.py").write_text(MODULE)
    (tmp_path / "test_other.py").write_text(OTHER)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=out.xml", "-k", "not asked"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    cases = {case.get("name"): case for case in ElementTree.parse(tmp_path / "out.xml").iter("testcase")}
    outcomes = {name: [each.tag for each in case] for name, case in cases.items()}
    assert outcomes == {
        "test_variable[1]": [],
        "test_variable[0]": ["failure"],
        "test_skipped": ["skipped"],
        "test_dies": ["failure"],
        "test_after": ["failure"],
        "test_in_this_process": [],
    }
    assert "what it says" in (cases["test_variable[0]"][0].text or "")
    assert "for a reason" in (cases["test_skipped"][0].get("message") or "")
    assert "ended with status 3 before this test" in (cases["test_after"][0].text or "")
