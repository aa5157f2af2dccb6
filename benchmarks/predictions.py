"""Predicted beside measured: decoding after 0 and 4096 tokens, prompts of 64 and 512, of whole models and slices.

    python -m benchmarks.predictions [--lite FILE] [--slice FILE] [--cases lite,deepseek-v3:q2_k/1] [--into FILE]

Each model is loaded once. In every round each figure is measured between two probes of the kernels that count for it
(hetero.cpu_rates: on weights of their own, in matrices of their own size, never a layer of the model), because a shared
machine drifts, within seconds by a factor of two; it is compared with what follows from the mean of their rates. What
counts is the median of the rounds' ratios of predicted to measured tokens/s. Measured are medians too, because memory
that was not read for some seconds is slow at first on a virtual machine: of DECODED tokens, after WARM others; of
REPEATED prompts, 3 or more, so that the first one does not count. For decoding after 4096 tokens the cache is filled
with random values, not by a prompt.

A name with a slash is a synthetic model: a preset, and how many of its layers with experts (hetero.synthetic).
The table goes to stderr; the results of each model take the place of its earlier ones in --into as soon as they are
there.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.options import names, parser
from benchmarks.setting import ROOT, setting
from cpu_kernels import write_cache
from hetero import RunConfig, load
from hetero.cpu_rates import measure_cpu
from hetero.engine import Engine
from hetero.probe import read_bandwidth
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
DECODED, WARM, REPEATED = 32, 16, {64: 5, 512: 3}  # tokens; prompts
ENOUGH = 1 << 45  # bytes of a memory that is never the limit
LIMIT = 0.15


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
        return Loaded.of(engine, engine.planned.model)
    name, _, layers = case.rpartition("/")
    made = make_slice(name, int(layers), run, CONTEXT)
    return Loaded.of(load_slice(made, run), made.model)


def rounds(there: Loaded, ids: list[int], options: argparse.Namespace) -> dict[Figure, list[dict]]:
    stopwatch, found = Stopwatch(options.seconds), {figure: list[dict]() for figure in FIGURES}
    for figure in FIGURES:
        figure.measure(there, ids)  # what is allocated or touched for the first time
    for _ in range(options.rounds):
        for columns, figures in groupby(FIGURES, lambda figure: figure.columns):
            before = there.probed(stopwatch, columns)
            for figure in figures:
                speed, after = figure.measure(there, ids), there.probed(stopwatch, columns)
                expected = figure.predict(there.predictor(typical([before, after])))
                parts = {part.part: part.seconds for part in expected.parts}
                found[figure].append({"predicted": expected.tokens_per_second, "measured": speed, "parts": parts})
                before = after
    return found


def typical(machines: list[Machine]) -> Machine:
    """The median of each of their figures, of two the mean."""
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
        rows = [result(case, figure, series) for figure, series in rounds(there, ids, options).items()]
    print(f"{case:<24}{perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return rows


def write(path: Path, rows: list[dict], options: argparse.Namespace) -> None:
    """In place of what the file has of the same models; each row with the commit and the day."""
    cases, about = {row["case"] for row in rows}, setting()
    kept = [row for row in json.loads(path.read_text())["results"] if row["case"] not in cases] if path.exists() else []
    dated = [row | {key: about[key] for key in ("commit", "date")} for row in rows]
    ordered = sorted(kept + dated, key=lambda row: CASES.index(row["case"]))
    path.write_text(json.dumps({"threads": options.threads, "kv": options.kv, "results": ordered, **about}) + "\n")


def main() -> None:
    arguments = parser(__doc__, seconds=0.02)
    arguments.add_argument("--cases", type=names, default=list(CASES), help=", ".join(CASES))
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--kv", default="f16")
    arguments.add_argument("--into", type=Path, default=ROOT / "benchmarks" / "results" / "predictions.json")
    for name in FILES:
        arguments.add_argument(f"--{name}", metavar="FILE", default=f"{name}.gguf")
    options = arguments.parse_args()
    for case in options.cases:
        write(options.into, measure(case, options), options)


if __name__ == "__main__":
    main()
