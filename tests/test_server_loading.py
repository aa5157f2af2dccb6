"""From the start of `hetero serve` until the model is there: what clients are told, and what a failure leaves open."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hetero.loading
import hetero.scheduler
from hetero import demo
from hetero.errors import ResourceError
from hetero.run_config import RunConfig
from hetero.server.run import listening, open_model
from hetero.server.settings import ServeSettings
from hetero.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]


def silent(stage: str, done: int, total: int) -> None:
    pass


def test_who_connects_before_the_server_runs_is_not_refused() -> None:
    with listening(ServeSettings(port=0)) as listener, socket.create_connection(listener.getsockname(), 10) as one:
        one.sendall(b"GET /health HTTP/1.1\r\n")
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100).startswith(b"GET /health")


class Opened:
    """An engine, as far as loading a server's model looks at it."""

    def __init__(self, file: Any) -> None:
        self.file, self.closed, self.context, self.planned = file, 0, 64, None
        self.config = self
        self.name = "small"

    def close(self) -> None:
        self.closed += 1


class Idle:
    """A scheduler that has nothing to do."""

    def __init__(self, engine: Opened, **settings: Any):
        self.engine = engine

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    from hetero.gguf import open_gguf

    file = open_gguf(demo.path())
    engine, tokenizer = Opened(file), Tokenizer.from_gguf(file)
    monkeypatch.setattr(hetero.loading, "load", lambda *arguments: (engine, tokenizer))
    monkeypatch.setattr(hetero.scheduler, "Scheduler", Idle)
    return engine


def opens() -> Any:
    return open_model("small.gguf", RunConfig(), ServeSettings(), silent)


@pytest.mark.parametrize("what", ["scheduler.Scheduler", "server.run.Loaded", "server.run.ChatTemplate"])
def test_what_was_loaded_is_closed_when_the_rest_fails(
    opened: Opened, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise ResourceError("no room for it")

    fail.from_gguf = fail  # type: ignore[attr-defined]  # of the template
    monkeypatch.setattr(f"hetero.{what}", fail)
    with pytest.raises(ResourceError, match="no room"):
        opens()
    assert opened.closed == 1


def test_the_vocabulary_is_there_before_the_first_request(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = opens()
    assert not opened.closed and "vocabulary" in vars(loaded)


def test_a_model_without_an_end_is_served_without_grammars(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = hetero.loading.load("small.gguf", RunConfig())[1]
    tokenizer.stop_ids = frozenset()
    loaded = opens()
    assert not opened.closed and "vocabulary" not in vars(loaded)


def test_it_listens_before_kernels_are_compiled() -> None:
    """Importing them for the first time takes a minute; meanwhile the address answers, and says what is done."""
    code = "import sys, hetero.server.run; print([name for name in sys.modules if name in ('numba', 'cpu_kernels')])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
