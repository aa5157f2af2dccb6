"""What a caller of the engine sees when a meeting of GPU and CPU goes wrong: an exception in time, then a refusal that
says why, and an end. Plain torch stands in for the GPU; the flags are those that a real one meets."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import hetero
from cpu_kernels.doorbell import FIRST
from hetero import RunConfig, Sampling
from hetero.engine import Engine
from hetero.errors import GpuMemoryError, KernelError, OffloadError
from hetero.offload import Doorbells
from hetero.waiting import TWINS, Verbs
from tests import fake_gpu, plain_gpu
from tests.prompts import prompt
from tests.test_hybrid import attention

IDS = list(prompt(20))
GREEDY = Sampling(temperature=0.0, max_tokens=6)
UNREADABLE = 16  # an address


@pytest.fixture(scope="module")
def load(model_file, tmp_path_factory) -> Iterator[Callable[[bool], Engine]]:
    """load(flags): attention on the GPU, networks on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        plain_gpu.pretend(patch)
        patch.setattr("hetero.gpu_machine.DEVICE_FILES", ("/dev/nvidiactl of no test",))
        open_bells, run = Doorbells.open, RunConfig(context=128, threads=2, device="cpu")
        path, target = model_file("tiny", "F16"), tmp_path_factory.mktemp("plan") / "plan.json"
        plan = plain_gpu.placed(path, target, run, attention)

        def load_engine(flags: bool) -> Engine:
            patch.setattr(Doorbells, "open", lambda bells: open_bells(bells, TWINS if flags else None))
            engine, _ = hetero.load(path, RunConfig(context=128, threads=2, plan=plan))
            return engine

        yield load_engine


@pytest.fixture(scope="module")
def expected(load) -> list[int]:
    engine = load(flags=False)
    try:
        return list(engine.generate(IDS, GREEDY))
    finally:
        engine.close()


@pytest.fixture
def engine(load) -> Iterator[Engine]:
    engine = load(flags=True)
    yield engine
    engine.close()


def bells(engine: Engine) -> Any:
    model: Any = engine.model
    assert model.doorbells.flags.way == TWINS
    return model.doorbells


def deadly(engine: Engine) -> np.ndarray:
    """Arguments of a call that kills the second thread of the engine's pool, which is in another job meanwhile."""
    arrays = [np.zeros(8, np.float32), np.zeros(2, np.int32), np.zeros(2, np.float32), np.zeros(8, np.float32)]
    arguments = fake_gpu.answer(engine.pool, arrays, thread=1)
    arguments[7] = UNREADABLE
    engine.kept = arrays  # type: ignore[attr-defined]
    return arguments


def kill_a_worker(engine: Engine) -> None:
    """In the middle of the CPU's part of the second meeting."""
    program, table = bells(engine).flags._programs[1]
    program.entries[table[1, FIRST]] = fake_gpu._answer.address, deadly(engine).ctypes.data


def ask_for_no_expert(engine: Engine) -> None:
    verbs = bells(engine).flags.verbs

    def ring(line: Any, x: Any, ids: Any = None, weights: Any = None) -> None:
        verbs.ring(line, x, None if ids is None else ids + 1000, weights)

    bells(engine).flags.verbs = Verbs(ring, verbs.wait, verbs.take)


def lose_the_gpu(engine: Engine) -> None:
    """It rings for the next token."""
    verbs = bells(engine).flags.verbs

    def ring(line: Any, *payload: Any) -> None:
        verbs.ring(line, *payload)
        line.request.add_(1)

    bells(engine).flags.verbs = Verbs(ring, verbs.wait, verbs.take)


def drop_an_answer(engine: Engine) -> None:
    verbs = bells(engine).flags.verbs

    def wait(line: Any) -> None:
        line.abort.fill_(1)

    bells(engine).flags.verbs = Verbs(verbs.ring, wait, verbs.take)


def stop(engine: Engine) -> None:
    other = threading.Thread(target=bells(engine).stop)
    other.start()
    other.join()


FAILURES: list[tuple[Callable[[Engine], None], type[Exception], str]] = [
    (kill_a_worker, KernelError, "answer_job died on thread 1 of its pool: SIGSEGV"),
    (ask_for_no_expert, KernelError, "check_experts died .*an expert that is not among the CPU's"),
    (lose_the_gpu, OffloadError, "the GPU is at another token than the CPU at meeting 0"),
    (drop_an_answer, OffloadError, "the GPU gave up waiting for the CPU before meeting 1"),
    (stop, OffloadError, "the pass was stopped before meeting 0"),
]


def assert_refuses(engine: Engine, message: str) -> None:
    """Whatever it is asked, and nothing hangs; then it ends."""
    refused = f"{message}.*; load the model again"
    for _ in range(2):
        for ids in (IDS, [7], list(prompt(100))):
            with pytest.raises((OffloadError, KernelError), match=refused):
                next(engine.generate(ids, GREEDY))
        with pytest.raises((OffloadError, KernelError), match=refused):
            engine.logits(IDS)
    engine.close()
    with pytest.raises((OffloadError, KernelError), match=refused):
        engine.logits(IDS)


@pytest.mark.parametrize(("fail", "error", "message"), FAILURES, ids=[fail.__name__ for fail, *_ in FAILURES])
def test_a_failure_in_the_middle_of_an_answer(fail, error, message, engine: Engine, expected: list[int]) -> None:
    answer = engine.generate(IDS, GREEDY)
    assert [next(answer), next(answer)] == expected[:2]
    cached = engine.cache.tokens(0).tolist()
    fail(engine)
    with pytest.raises(error, match=message):
        next(answer)
    assert engine.cache.tokens(0).tolist() == cached, "of the pass that failed no token stays"
    assert list(answer) == []
    assert_refuses(engine, message)


def test_a_failure_in_the_middle_of_a_prompt(engine: Engine) -> None:
    """Where payloads are copied and the CPU's part is called."""
    arguments, meeting = deadly(engine), bells(engine).meetings[1]

    def compute(*arrays: Any) -> None:
        engine.pool.call(fake_gpu._answer.address, arguments)

    meeting.part = replace(meeting.part, compute=compute)
    with pytest.raises(KernelError, match="answer_job died on thread 1"):
        next(engine.generate(IDS, GREEDY))
    assert engine.tokens_cached == 0
    assert_refuses(engine, "answer_job died on thread 1")


@pytest.mark.parametrize(
    ("error", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (torch.OutOfMemoryError, GpuMemoryError)]
)
def test_an_answer_that_is_interrupted(error, seen, engine: Engine, expected: list[int]) -> None:
    """By Ctrl-C, or while launching: the engine works on."""
    flags = bells(engine).flags
    verbs = flags.verbs

    def take(*given: Any) -> Any:
        flags.verbs = verbs
        raise error("on the way")

    answer = engine.generate(IDS, GREEDY)
    assert next(answer) == expected[0]
    flags.verbs = Verbs(verbs.ring, verbs.wait, take)
    with pytest.raises(seen, match="on the way"):
        next(answer)
    assert list(engine.generate(IDS, GREEDY)) == expected


def test_a_closed_engine_says_so(engine: Engine) -> None:
    engine.close()
    with pytest.raises(OffloadError, match="the doorbells are closed"):
        engine.logits(IDS)
