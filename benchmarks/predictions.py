"""Predicted beside measured: decoding after 0 and 4096 tokens, prompts of 64 and 512, of whole models and slices.

    python -m benchmarks.predictions [--lite FILE] [--slice FILE] [--cases lite,deepseek-v3:q2_k/1]

Each model is loaded once. For each figure the kernels that count for it are probed (hetero.cpu_rates: on weights of
their own, in matrices of their own size, never a layer of the model) and it is measured, in turns, because a shared
machine drifts, within seconds by a factor of two. A measurement is compared with what follows from the probes around
it, up to AROUND on each side: of each of their rates the median. What counts is the median of the rounds' ratios of
predicted to measured tokens/s. Measured are medians too: of DECODED tokens, after WARM others, because memory that
was not read for some seconds is slow at first on a virtual machine; of REPEATED prompts. For decoding after 4096 tokens
the cache is filled with random values, not by a prompt.

A name with a slash is a synthetic model: a preset, and how many of its layers with experts (hetero.synthetic).
The table goes to stderr, one JSON document comes last, on stdout.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.options import names, parser
from benchmarks.setting import setting
from cpu_kernels import write_cache
from hetero import RunConfig, load
from hetero.cpu_rates import measure_cpu
from hetero.engine import Engine
from hetero.planning import model_of
from hetero.probe import machine, read_bandwidth
from hetero.sampler import Sampling
from hetero.stopwatch import Stopwatch
from hetero.synthetic import load_slice, make_slice
from placement import Machine, Memory, Model, Predictor, Settings
from placement.plan import DecodeSpeed, Placed, PrefillSpeed
from placement.work import Layout

FILES = ("lite", "slice")
PRESETS = {"q2_k": (1, 2, 3), "q4_k_m": (1, 2), "q8_0": (1,)}
CASES = (*FILES, *(f"deepseek-v3:{type}/{layers}" for type, counts in PRESETS.items() for layers in counts))
DEPTHS, PROMPTS, CONTEXT = (0, 4096), (64, 512), 4192
DECODED, WARM, REPEATED = 48, 16, {64: 5, 512: 2}  # tokens; prompts
ENOUGH = 1 << 45  # bytes of a memory that is never the limit
LIMIT = 0.15
AROUND = 2  # probes


@dataclass(frozen=True)
class Loaded:
    """A model in memory, all of it beside the CPU."""

    engine: Engine
    model: Model
    placed: tuple[Placed, ...]

    @classmethod
    def of(cls, engine: Engine, model: Model) -> "Loaded":
        return cls(engine, model, tuple(Placed(t.name, "node0", t.nbytes) for t in model.tensors))

    def probed(self, stopwatch: Stopwatch, columns: int) -> Machine:
        """Every kernel that the model uses, with up to so many columns."""
        pool, kv = self.engine.pool, self.engine.run.kv
        wanted = {(kind.verb, kind.type) for kind in Layout(self.model, self.placed).products}
        cpu = measure_cpu(pool, stopwatch, "", wanted, [kv], most=columns)
        return Machine("", True, (Memory("node0", "dram", ENOUGH, read_bandwidth(pool)),), (), (cpu,))

    def predictor(self, machine: Machine) -> Predictor:
        settings = Settings(context=CONTEXT, kv=self.engine.run.kv, threads=self.engine.pool.threads)
        return Predictor(self.model, machine, settings, self.placed)

    def fill_cache(self) -> None:
        rng, cache = np.random.default_rng(0), self.engine.cache
        config, slots = self.engine.config, np.arange(max(DEPTHS))
        for layer in cache.layers:
            latent, key = (
                rng.standard_normal((len(slots), width), np.float32)
                for width in (config.kv_lora_rank, config.rope.dimension)
            )
            write_cache(self.engine.pool, layer, latent, key, slots)

    def decode(self, ids: list[int], depth: int) -> float:
        """Tokens/s after `depth` tokens and a few."""
        self.engine.forget()
        self.engine.cache.extend(0, ids[:depth])
        times, limit = [], WARM + DECODED + 1
        for _ in self.engine.generate(ids[: depth + 1], Sampling(temperature=0.0, max_tokens=limit), ()):
            times.append(perf_counter())
        return 1 / median(after - before for before, after in pairwise(times[WARM:]))

    def prefill(self, ids: list[int], tokens: int) -> float:
        speeds = []
        for _ in range(REPEATED[tokens]):
            self.engine.forget()
            for _ in self.engine.generate(ids[:tokens], Sampling(temperature=0.0, max_tokens=1), ()):
                pass
            speeds.append(self.engine.telemetry.prompt_tokens_per_second)
        return median(speeds)


@dataclass(frozen=True)
class Figure:
    name: str
    columns: int  # of products, at most: all that have to be probed
    measure: Callable[[Loaded, list[int]], float]  # tokens/s
    predict: Callable[[Predictor], DecodeSpeed | PrefillSpeed]


def decode_at(depth: int) -> Figure:
    middle = depth + WARM + DECODED // 2
    return Figure(f"decode at {depth}", 1, lambda there, ids: there.decode(ids, depth), lambda of: of.decode(middle))


def prefill_of(tokens: int) -> Figure:
    return Figure(
        f"prefill {tokens}", tokens, lambda there, ids: there.prefill(ids, tokens), lambda of: of.prefill(tokens)
    )


FIGURES = (*(decode_at(depth) for depth in DEPTHS), *(prefill_of(tokens) for tokens in PROMPTS))


def loaded(case: str, options: argparse.Namespace) -> Loaded:
    run = RunConfig(context=CONTEXT, threads=options.threads, kv=options.kv)
    if case in FILES:
        engine, _ = load(getattr(options, case), run)
        return Loaded.of(engine, model_of(engine.file, engine.config))
    name, _, layers = case.rpartition("/")
    made = make_slice(name, int(layers), run, CONTEXT)
    return Loaded.of(load_slice(made, run), made.model)


def rounds(there: Loaded, figure: Figure, ids: list[int], options: argparse.Namespace) -> list[dict]:
    stopwatch, speeds = Stopwatch(options.seconds), list[float]()
    figure.measure(there, ids)  # what is allocated or touched for the first time
    probes = [there.probed(stopwatch, figure.columns)]
    for _ in range(options.rounds):
        speeds.append(figure.measure(there, ids))
        probes.append(there.probed(stopwatch, figure.columns))
    found = []
    for i, speed in enumerate(speeds):
        around = typical(probes[max(0, i + 1 - AROUND) : i + 1 + AROUND])
        expected = figure.predict(there.predictor(around))
        parts = {part.part: part.seconds for part in expected.parts}
        found.append({"predicted": expected.tokens_per_second, "measured": speed, "parts": parts})
    return found


def typical(machines: list[Machine]) -> Machine:
    """The median of each of their figures."""
    return Machine.from_json(_typical([machine.to_json() for machine in machines]))


def _typical(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _typical([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_typical(list(items)) for items in zip(*values, strict=True)]
    return median(values) if isinstance(first, float) else first


def result(case: str, figure: Figure, series: list[dict]) -> dict:
    ratios = [one["predicted"] / one["measured"] for one in series]
    row = {
        "case": case,
        "figure": figure.name,
        "predicted": median(one["predicted"] for one in series),
        "measured": median(one["measured"] for one in series),
        "ratio": median(ratios),
        "within": abs(median(ratios) - 1) <= LIMIT,
        "ratios": ratios,
        "seconds_by_part": series[-1]["parts"],
    }
    print(
        f"{case:<24}{figure.name:<16}predicted{row['predicted']:9.2f}  measured{row['measured']:9.2f} tok/s"
        f"  ratio {row['ratio']:.2f}  ({' '.join(f'{ratio:.2f}' for ratio in ratios)})",
        file=sys.stderr,
        flush=True,
    )
    return row


def measure(case: str, options: argparse.Namespace) -> list[dict]:
    started = perf_counter()
    there = loaded(case, options)
    with closing(there.engine):
        ids = np.random.default_rng(0).integers(0, there.engine.config.vocab_size, CONTEXT).tolist()
        there.fill_cache()
        rows = [result(case, figure, rounds(there, figure, ids, options)) for figure in FIGURES]
    print(f"{case:<24}{perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    arguments = parser(__doc__, seconds=0.02)
    arguments.add_argument("--cases", type=names, default=list(CASES), help=", ".join(CASES))
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--kv", default="f16")
    for name in FILES:
        arguments.add_argument(f"--{name}", metavar="FILE", default=f"{name}.gguf")
    options = arguments.parse_args()
    rows = [row for case in options.cases for row in measure(case, options)]
    print(
        json.dumps({"threads": options.threads, "kv": options.kv, "machine": machine(), "results": rows, **setting()})
    )


if __name__ == "__main__":
    main()
