"""The engine's own logic, over a model that computes nothing: what is asked of it, and what the cache then holds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cpu_kernels
import hetero.engine
from cpu_kernels.jit import CACHE_DIRECTORY
from hetero.cache import LatentCache
from hetero.engine import CHUNK, Engine
from hetero.errors import FileError, RequestError, ResourceError, UnsupportedError
from hetero.gguf import GGUFFile
from hetero.loading import load
from hetero.model import Batch
from hetero.run_config import RunConfig
from hetero.sampler import Sampling
from hetero.tokenizer import Tokenizer
from tests.small_model import METADATA, small_config, small_model

GREEDY = Sampling(temperature=0.0)
VOCABULARY = METADATA["deepseek2.vocab_size"]


class Counting:
    """After token n comes n + 1. `passes`: of each the first position, the number of tokens and of logits."""

    absorbed_limit = 100

    def __init__(self) -> None:
        self.passes: list[tuple[int, int, int]] = []
        self.fails: type[BaseException] | None = None

    def forward(self, batch: Batch, layers: list[np.ndarray]) -> np.ndarray | None:
        if self.fails is not None:
            raise self.fails
        self.passes.append((int(batch.positions[0]), len(batch.ids), len(batch.logits_at)))
        following = (batch.ids[batch.logits_at] + 1) % VOCABULARY
        return np.eye(VOCABULARY, dtype=np.float32)[following] if len(following) else None

    def close(self) -> None:
        pass


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Counting:
    model = Counting()
    monkeypatch.setattr(hetero.engine, "place_weights", lambda file, config, pool: model)
    return model


@pytest.fixture
def engine(model: Counting) -> Iterator[Engine]:
    config, run = small_config(), RunConfig()
    with cpu_kernels.Pool(1) as pool:
        yield Engine(GGUFFile((), {}, {}, 0), config, run, LatentCache(config, run, context=3 * CHUNK), pool)


def prompt(tokens: int) -> list[int]:
    return [n % VOCABULARY for n in range(tokens)]


def test_generates_until_a_stop_id_which_is_not_yielded(engine: Engine, model: Counting) -> None:
    assert list(engine.generate([1, 2, 3], GREEDY, stop_ids=[7])) == [4, 5, 6]
    assert model.passes == [(0, 2, 0), (2, 1, 1), (3, 1, 1), (4, 1, 1), (5, 1, 1)]
    assert engine.tokens_cached == 6


def test_generates_at_most_max_tokens(engine: Engine, model: Counting) -> None:
    assert list(engine.generate([1], Sampling(temperature=0.0, max_tokens=2))) == [2, 3]
    assert model.passes == [(0, 1, 1), (1, 1, 1)], "the last token is not computed any further"


@pytest.mark.parametrize("free", [0, 1, 2])
def test_ends_where_the_context_is_full(free: int, engine: Engine) -> None:
    ids = prompt(engine.context - free)
    assert len(list(engine.generate(ids, GREEDY))) == free + 1
    assert engine.tokens_cached == engine.context


def test_computes_only_what_differs_from_the_cached_tokens(engine: Engine, model: Counting) -> None:
    answer = list(engine.generate([1, 2, 3, 4], Sampling(temperature=0.0, max_tokens=3)))
    model.passes.clear()
    next(engine.generate([1, 2, 3, 4, *answer[:2], 9, 9, 9], GREEDY))
    assert model.passes == [(6, 2, 0), (8, 1, 1)]
    assert (engine.telemetry.cached_tokens, engine.telemetry.prompt_tokens) == (6, 3)


def test_a_prompt_that_is_cached_whole_still_gets_its_logits(engine: Engine, model: Counting) -> None:
    first = list(engine.generate([1, 2, 3], Sampling(temperature=0.0, max_tokens=4)))
    model.passes.clear()
    assert list(engine.generate([1, 2, 3], Sampling(temperature=0.0, max_tokens=4))) == first
    assert model.passes[0] == (2, 1, 1)


def test_chunks_begin_at_absolute_multiples(engine: Engine, model: Counting) -> None:
    ids = prompt(2 * CHUNK + 10)
    next(engine.generate(ids, GREEDY))
    assert model.passes == [(0, CHUNK, 0), (CHUNK, CHUNK, 0), (2 * CHUNK, 9, 0), (2 * CHUNK + 9, 1, 1)]
    model.passes.clear()
    next(engine.generate([*ids[:100], 15, *ids[101:]], GREEDY))
    assert [start for start, *_ in model.passes] == [100, CHUNK, 2 * CHUNK, 2 * CHUNK + 9]


def test_what_can_be_read_in_one_pass_is_not_cut(engine: Engine, model: Counting) -> None:
    ids = prompt(CHUNK + 200)
    next(engine.generate(ids[: CHUNK - 50], GREEDY))
    model.passes.clear()
    next(engine.generate(ids, GREEDY))
    assert model.passes == [(CHUNK - 50, 249, 0), (CHUNK + 199, 1, 1)]


def test_logits_are_read_from_an_empty_context(engine: Engine, model: Counting) -> None:
    list(engine.generate([1, 2, 3], Sampling(temperature=0.0, max_tokens=2)))
    model.passes.clear()
    ids = prompt(CHUNK + 1)
    logits = engine.logits(ids)
    assert logits.shape == (CHUNK + 1, VOCABULARY)
    assert (logits.argmax(axis=1) == (np.array(ids) + 1) % VOCABULARY).all()
    assert model.passes == [(0, CHUNK, CHUNK), (CHUNK, 1, 1)]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_pass_that_fails_leaves_no_token(failure: type[BaseException], engine: Engine, model: Counting) -> None:
    list(engine.generate([1, 2, 3], Sampling(temperature=0.0, max_tokens=2)))
    model.fails = failure
    with pytest.raises(failure):
        list(engine.generate([1, 2, 9, *prompt(200)], GREEDY))
    assert engine.cache.tokens(0).tolist() == [1, 2]
    model.fails = None
    assert list(engine.generate([1, 2, 3], Sampling(temperature=0.0, max_tokens=2))) == [4, 5]
    engine.forget()
    assert len(set(engine.cache.free_pages)) == len(engine.cache.free_pages) == 3 * CHUNK // 64


def test_an_interrupt_before_the_pass_leaves_no_token(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**values: object) -> Batch:
        raise KeyboardInterrupt

    monkeypatch.setattr(hetero.engine, "Batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(engine.generate([1, 2, 3], GREEDY))
    assert engine.tokens_cached == 0


@pytest.mark.parametrize("other", ["generate", "logits", "forget"])
def test_an_abandoned_answer_cannot_go_on_from_another_ones_cache(other: str, engine: Engine) -> None:
    abandoned = engine.generate([1, 2, 3], GREEDY)
    assert next(abandoned) == 4
    match other:
        case "generate":
            next(engine.generate([5, 6, 7], GREEDY))
        case "logits":
            engine.logits([5, 6, 7])
        case "forget":
            engine.forget()
    cached = engine.cache.tokens(0).tolist()
    with pytest.raises(RequestError, match="another request"):
        next(abandoned)
    assert engine.cache.tokens(0).tolist() == cached


def test_an_answer_left_half_way_is_a_prefix_of_the_next_prompt(engine: Engine, model: Counting) -> None:
    answer = engine.generate([1, 2, 3], GREEDY)
    said = [next(answer) for _ in range(3)]
    assert isinstance(answer, Generator)
    answer.close()
    model.passes.clear()
    assert next(engine.generate([1, 2, 3, *said], GREEDY)) == said[-1] + 1
    assert model.passes == [(5, 1, 1)]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "an empty prompt; at least one token"),
        ([0] * (3 * CHUNK + 1), f"the prompt has {3 * CHUNK + 1} tokens; the context holds {3 * CHUNK}"),
        ([0, -1], "token id -1; the vocabulary has ids 0 to 15"),
        ([16, 0], "token id 16; the vocabulary"),
    ],
)
def test_refuses_before_anything_is_computed(ids: list[int], message: str, engine: Engine, model: Counting) -> None:
    list(engine.generate([1, 2, 3], Sampling(temperature=0.0, max_tokens=2)))
    cached, passes = engine.cache.tokens(0).tolist(), len(model.passes)
    for request in (engine.generate, engine.logits):
        with pytest.raises(RequestError, match=message):
            request(ids)
    assert engine.cache.tokens(0).tolist() == cached and len(model.passes) == passes


@pytest.mark.parametrize("ids", [[0, -1], [16, 0], [2**70], []])
def test_prompts_that_are_arrays_are_checked_as_lists_are(ids: list[int], engine: Engine) -> None:
    many = np.array(ids, np.int64 if max(ids, default=0) < 2**63 else object)
    found = []
    for given in (ids, many):
        with pytest.raises(RequestError) as refused:
            engine.checked_array(given)
        found.append(str(refused.value))
    assert found[0] == found[1]
    array = engine.checked_array(np.array([3, 15, 0], np.int32))
    assert array.dtype == np.int32 and array.tolist() == engine.checked([3, 15, 0]) == [3, 15, 0]


def test_refuses_impossible_sampling_before_anything_is_computed(engine: Engine, model: Counting) -> None:
    with pytest.raises(RequestError, match="logit_bias names token 16"):
        engine.generate([1], Sampling(logit_bias={16: 1.0}))
    assert model.passes == []


def test_a_load_that_fails_ends_its_threads(tmp_path: Path, model: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = []

    class Watched(cpu_kernels.Pool):
        def __init__(self, threads: int | None):
            super().__init__(threads)
            pools.append(self)

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "from_gguf", lambda file: SimpleNamespace(vocab_size=VOCABULARY))
    monkeypatch.setattr(cpu_kernels, "Pool", Watched)
    monkeypatch.setattr(hetero.engine, "place_weights", fail)
    (tmp_path / "small.gguf").write_bytes(small_model())
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "small.gguf", RunConfig(threads=2))
    with pytest.raises(RuntimeError, match="closed"):
        _ = pools[0].control


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (RunConfig(kv="q8_0"), UnsupportedError, "kv q8_0 for a model with 6 cached values"),
        (RunConfig(context=65), RequestError, "a context of 65 tokens; small was made for at most 64"),
    ],
)
def test_refuses_settings_before_a_thread_starts(
    run: RunConfig, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "from_gguf", lambda file: SimpleNamespace(vocab_size=VOCABULARY))
    monkeypatch.setattr(cpu_kernels, "Pool", None)
    (tmp_path / "small.gguf").write_bytes(small_model())
    with pytest.raises(error, match=message):
        load(tmp_path / "small.gguf", run)


def test_refuses_a_cache_beyond_memory_before_kernels_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "from_gguf", lambda file: SimpleNamespace(vocab_size=VOCABULARY))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    (tmp_path / "small.gguf").write_bytes(small_model())
    stages: list[str] = []
    with pytest.raises(ResourceError, match=r"need 0\.5 GiB; 0\.0 GiB of DRAM may be used"):
        load(tmp_path / "small.gguf", progress=lambda stage, done, total: stages.append(stage))
    assert stages == []


COMPILED = """
import gc
from numba.core.dispatcher import Dispatcher
from hetero import RunConfig, Sampling, demo, load
def compiled():
    kernels = [kernel for kernel in gc.get_objects() if isinstance(kernel, Dispatcher)]
    return {(kernel.__module__, kernel.__name__, str(types)) for kernel in kernels for types in kernel.signatures}
engine, _ = load(demo.path(), RunConfig(context=512, threads=2))
before = compiled()
for tokens in (1, 2, 5, 300):
    list(engine.generate([7] * tokens, Sampling(max_tokens=2)))
    engine.logits([8] * tokens)
print({"_pages_exist", "run_entry"} <= {name for _, name, _ in before}, compiled() - before)
"""


def test_nothing_is_compiled_in_the_middle_of_an_answer() -> None:
    """In a process of its own: here other tests have compiled everything long ago."""
    result = subprocess.run([sys.executable, "-c", COMPILED], stdout=subprocess.PIPE, text=True, check=True)
    assert result.stdout == "True set()\n"


def test_refuses_a_tokenizer_of_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "from_gguf", lambda file: SimpleNamespace(vocab_size=VOCABULARY + 1))
    (tmp_path / "small.gguf").write_bytes(small_model())
    with pytest.raises(FileError, match="its tokenizer has 17 tokens; the model has 16"):
        load(tmp_path / "small.gguf")


def test_says_that_kernels_compile_until_a_model_has_run(tmp_path: Path) -> None:
    """As after a first start that was interrupted: kernels are there, the note that a model has run is not."""
    script = (
        "from hetero import demo, load; import sys\n"
        "stages = []\n"
        "load(demo.path(), progress=lambda stage, done, total: stages.append(stage))\n"
        "print(stages[0].split()[0])\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    there = tmp_path / "hetero" / CACHE_DIRECTORY.name
    shutil.copytree(CACHE_DIRECTORY, there, ignore=shutil.ignore_patterns("complete", "*.tmp.*"))

    def first_stage() -> str:
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stdout

    assert first_stage() == "compiling\n"
    assert first_stage() == "preparing\n"
