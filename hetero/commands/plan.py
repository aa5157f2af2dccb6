"""`hetero plan`: what fits, and how fast it will be."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import typer
from typer import Option

from hetero.commands.model import DEMO, path_of
from hetero.commands.options import Json, rate, size


@dataclass
class PlanFlags:
    """What `plan` is asked; the same names as hetero.plan_request.PlanRequest."""

    preset: Annotated[str | None, Option(metavar="NAME", help="A model without its file, as deepseek-v3:q4_k_m.")] = (
        None
    )
    plan: Annotated[str | None, Option(metavar="FILE", help="A plan that was edited: check it.")] = None
    context: Annotated[int | None, Option(min=1, help="Tokens of context [the model's, at most 8192].")] = None
    sequences: Annotated[int | None, Option(min=1, help="Sequences at once [1].")] = None
    kv: Annotated[Literal["f32", "f16", "q8_0"] | None, Option(help="Type of the KV cache [f16].")] = None
    threads: Annotated[int | None, Option(min=1, help="CPU threads [one per physical core].")] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, Option(help="Where to compute [auto: on a GPU too, if it can be used].")
    ] = None
    memory: Annotated[
        int | None,
        Option(parser=size, metavar="SIZE", help="At most so much main memory, as 384GiB; another machine's."),
    ] = None
    gpu_memory: Annotated[
        int | None, Option(parser=size, metavar="SIZE", help="At most so much GPU memory, as 24GiB; another machine's.")
    ] = None
    mmap: Annotated[
        bool | None,
        Option("--mmap/--no-mmap", help="Weights in the mapped file, or in memory [in memory, if they fit]."),
    ] = None
    gpu_experts: Annotated[int | None, Option(min=0, help="Routed experts on the GPU [as many as fit].")] = None
    expert_counts: Annotated[
        str | None, Option(metavar="FILE", help="The most used first; `bench` and `eval` write it.")
    ] = None
    gpu: Annotated[str | None, Option(help="Another machine: its GPU, as rtx-4090.")] = None
    socket: Annotated[str | None, Option(help="Its processors, as epyc-genoa.")] = None
    sockets: Annotated[int | None, Option(min=1, help="How many of them [1].")] = None
    cores: Annotated[int | None, Option(min=1, help="Their cores, all together [the socket's].")] = None
    memory_bandwidth: Annotated[
        int | None, Option(parser=rate, metavar="RATE", help="Its memory's, as 460GB/s [the sockets'].")
    ] = None
    pcie: Annotated[
        str | None, Option(metavar="GENxLANES", help="To its GPU, as 4x16 [the older of GPU's and socket's].")
    ] = None
    disk_bandwidth: Annotated[int | None, Option(parser=rate, metavar="RATE", help="Its disk's [5GB/s].")] = None
    refresh: Annotated[bool, Option("--refresh", help="Measure this machine anew.")] = False


def plan(
    model: Annotated[str | None, typer.Argument(help="A GGUF file (the first of a split one), or `demo`.")] = None,
    as_json: Json = False,
    html: Annotated[str | None, Option(metavar="FILE", help="Write a page with memory map and curves.")] = None,
    *,
    flags: PlanFlags,
) -> None:
    """Say what fits, and how fast it will be. From a header or a preset, for this machine or another."""
    from hetero.plan_report import describe, document
    from hetero.plan_request import PlanRequest, run_plan
    from hetero.terminal import Screen

    path = DEMO if model is None and flags.preset is None else model
    planned = run_plan(PlanRequest(model=path and path_of(path, "--preset"), **vars(flags)), Screen().note)
    if html is not None:
        from hetero.plan_page import page

        with open(html, "w", encoding="utf-8") as file:
            file.write(page(planned))
    print(json.dumps(document(planned), ensure_ascii=False, indent=1) if as_json else describe(planned))
