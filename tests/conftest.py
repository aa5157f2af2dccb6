"""Model files and what the oracles say of them, each made once per session."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.model_files import write
from tests.model_shapes import SHAPES

ModelFile = Callable[..., Path]
Logits = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """model_file("tiny", "Q4_K", kv_b_split=False) -> path of that file"""
    directory = tmp_path_factory.mktemp("models")

    @functools.cache
    def make(shape: str = "tiny", type: str = "F32", **changes: object) -> Path:
        path = directory / ("-".join([shape, type, *(f"{k}={v}" for k, v in changes.items())]) + ".gguf")
        write(path, dataclasses.replace(SHAPES[shape], **changes), type)
        return path

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
    from tests.oracles import LlamaCpp

    @functools.cache
    def logits(path: Path, ids: tuple[int, ...], kv: str = "f32") -> np.ndarray:
        with LlamaCpp(path, kv) as model:
            return model.eval(ids)

    return logits
