"""Model files and what the oracles say of them, each made once per session."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import ahead, apart, beside, gpu_interpreter
from tests.model_files import write
from tests.model_shapes import SHAPES

ModelFile = Callable[..., Path]
Logits = Callable[..., np.ndarray]


def pytest_configure(config: pytest.Config) -> None:
    for hooks in (apart, gpu_interpreter, ahead, beside):  # those of the last one sort tests first
        config.pluginmanager.register(hooks)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads use no GPU, whatever machine this is, unless a test says otherwise."""
    monkeypatch.setattr("hetero.gpu_machine.DEVICE_FILES", ("/dev/nvidiactl of no test",))


@pytest.fixture(scope="session")
def brief_machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machines")


@pytest.fixture
def brief_probe(brief_machines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.brief_probe import shorten

    shorten(monkeypatch, brief_machines)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """model_file("tiny", "Q4_K", kv_b_split=False) -> path of that file, of the first one with split_tensors=N"""
    directory = tmp_path_factory.mktemp("models")

    @functools.cache
    def make(shape: str = "tiny", type: str = "F32", split_tensors: int = 0, **changes: object) -> Path:
        name = "-".join([shape, type, *(f"{key}={value}" for key, value in changes.items())])
        write(
            directory / f"{name}.gguf", dataclasses.replace(SHAPES[shape], **changes), type, split_tensors=split_tensors
        )
        return next(directory.glob(f"{name}-00001-of-*.gguf")) if split_tensors else directory / f"{name}.gguf"

    return make


@pytest.fixture(scope="session")
def reference() -> Logits:
    """reference(path, ids) -> float64 logits [T, vocab] of transformers' V3 or V2, as the file's gating asks"""
    from tests.oracles import transformers

    model = functools.lru_cache(maxsize=2)(transformers)

    @functools.cache
    def logits(path: Path, ids: tuple[int, ...]) -> np.ndarray:
        return model(path)(ids)

    return logits


@pytest.fixture(scope="session")
def llama_cpp() -> Logits:
    """llama_cpp(path, ids, kv="f32") -> float32 logits [T, vocab] at exact settings"""
    from tests.llama_engine import LlamaCpp

    @functools.cache
    def logits(path: Path, ids: tuple[int, ...], kv: str = "f32") -> np.ndarray:
        with LlamaCpp(path, kv) as model:
            return model.eval(ids)

    return logits


def pytest_unconfigure() -> None:
    """llama_cpp opens /dev/null twice at import and never closes it: noise at exit where warnings are errors."""
    if llama_utils := sys.modules.get("llama_cpp._utils"):
        llama_utils.outnull_file.close()
        llama_utils.errnull_file.close()


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of the bundled model that wants `key`; four requests may wait (tests.served.Served)."""
    from tests.served import served

    key = tmp_path_factory.mktemp("server") / "key"
    key.write_text("a-key-of-tests\n")
    key.chmod(0o600)
    with served(api_key_file=key, queue=4) as server:
        yield server


@pytest.fixture(scope="module")  # not longer: while its pool lives, other tests' threads are held at one
def own_answers() -> Iterator[Any]:
    """The bundled model in this process (tests.own_answers.OwnAnswers)."""
    from tests.own_answers import OwnAnswers

    own = OwnAnswers()
    yield own
    own.engine.close()
