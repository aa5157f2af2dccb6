"""`hetero bench`: how fast a model is."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

from typer import Option

from hetero.commands.flags import RunFlags
from hetero.commands.model import DEMO, Model, path_of
from hetero.commands.options import Json


@dataclass
class BenchFlags:
    """What `bench` measures; the same names as hetero.bench.Bench."""

    prompt: Annotated[int, Option(min=1, help="Tokens of the prompt.")] = 512
    generate: Annotated[int, Option(min=1, help="Tokens to generate.")] = 128
    depth: Annotated[int, Option(min=0, help="Tokens of context before those.")] = 0
    repeat: Annotated[int, Option(min=1, help="Rounds; medians are shown.")] = 3
    compare: Annotated[Literal["llama.cpp"] | None, Option(help="Another engine, in turns, on the same file.")] = None
    synthetic: Annotated[
        str | None, Option(metavar="PRESET", help="A model without its file, as deepseek-v3:q4_k_m.")
    ] = None
    layers: Annotated[int | None, Option(help="Layers with experts of it [as many as fit].")] = None
    expert_counts: Annotated[
        str | None, Option(metavar="FILE", help="Write how often each expert was chosen, as JSON.")
    ] = None


def bench(model: Model = DEMO, as_json: Json = False, *, flags: BenchFlags, run: RunFlags) -> None:
    """Measure speed. Prefill and decode, under what the memory's bandwidth allows."""
    from hetero.bench import Bench, run_bench
    from hetero.bench_report import describe
    from hetero.terminal import Screen

    result = run_bench(Bench(model=path_of(model, "--synthetic"), **vars(flags)), run.config(), Screen())
    print(json.dumps(result, indent=1) if as_json else describe(result))
