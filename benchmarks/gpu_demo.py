"""The bundled model from end to end: what the GPU would answer after each token of the CPU's greedy answer."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu_cases import Case
from benchmarks.gpu_engines import no_gpu
from benchmarks.gpu_setup import Setup, figure
from hetero import RunConfig, Sampling, demo, load
from hetero.engine import Engine

TOKENS, TIE = 512, 1e-2  # logits nearer than this may come in another order
PROMPT = "The capital of France is"


def cases(setup: Setup) -> dict[str, Case]:
    return {"decode": partial(compared, setup), "free run": partial(free_run, setup)}


def engine_on(device: Any, setup: Setup, stack: ExitStack) -> tuple[Engine, Any]:
    run = RunConfig(context=1024, device=device, threads=2 if setup.plain else None)
    engine, tokenizer = load(demo.path(), run)
    stack.enter_context(closing(engine))
    return engine, tokenizer


def compared(setup: Setup) -> Iterator[dict[str, Any]]:
    """Both are fed the CPU's tokens one by one. A difference counts as a tie by its gap in the CPU's logits."""
    with ExitStack() as stack:
        if setup.plain:
            stack.enter_context(no_gpu())
        cpu, tokenizer = engine_on("cpu", setup, stack)
        gpu, _ = engine_on("cuda", setup, stack)
        ids, differences, deviation = tokenizer.encode(PROMPT), list[dict[str, Any]](), list[float]()
        for engine in (cpu, gpu):
            engine.forget()
            engine.prefill(ids[:-1])
        last = ids[-1]
        for at in range(setup.size(TOKENS, 12)):
            ours, theirs = gpu.scores([last])[0].astype(np.float64), cpu.scores([last])[0].astype(np.float64)
            deviation.append(float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)))
            mine, last = int(ours.argmax()), int(theirs.argmax())
            if mine != last:
                gap = float(theirs[last] - theirs[mine])
                differences.append({"at": at, "gpu": mine, "cpu": last, "gap": gap})
        worst = max((one["gap"] for one in differences), default=0.0)
        yield figure(
            "different tokens",
            len(differences),
            "tokens",
            target=f"only ties: gap < {TIE:g}",
            passed=worst < TIE,
            worst_gap=worst,
            differences=differences,
            of=len(deviation),
        )
        yield figure("deviation of logits", max(deviation), "relative", median=float(np.median(deviation)))


def free_run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Greedy answers of both, each after its own tokens: how far they agree."""
    count, answers = setup.size(TOKENS, 12), {}
    for device in ("cpu", "cuda"):
        with ExitStack() as stack:
            if setup.plain:
                stack.enter_context(no_gpu())
            engine, tokenizer = engine_on(device, setup, stack)
            sampling = Sampling(temperature=0.0, max_tokens=count)
            answers[device] = list(engine.generate(tokenizer.encode(PROMPT), sampling, ()))
    ours, theirs = answers["cuda"], answers["cpu"]
    same = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
    yield figure("same tokens from the start", same, "tokens", of=len(theirs))
