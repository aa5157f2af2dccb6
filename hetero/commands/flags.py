"""Flags of verbs that run a model: one for each field of hetero.RunConfig and of hetero.Sampling."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option

from hetero.commands.options import size

if TYPE_CHECKING:
    from hetero.run_config import RunConfig
    from hetero.sampler import Sampling


@dataclass
class RunFlags:
    """One flag for each field of hetero.RunConfig."""

    context: Annotated[
        int | None, Option(help="Tokens of context [the model's, at most 8192; bench and eval: what they need].")
    ] = None
    sequences: Annotated[int, Option(help="Sequences at once.")] = 1
    kv: Annotated[Literal["f32", "f16", "q8_0"], Option(help="Type of the KV cache.")] = "f16"
    threads: Annotated[int | None, Option(help="CPU threads [one per physical core].")] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Option(help="Where to compute [on a GPU too, if there is one].")
    ] = "auto"
    gpu_memory: Annotated[
        int | None, Option(parser=size, metavar="SIZE", help="At most so much GPU memory, as 24GiB [what is free].")
    ] = None
    memory: Annotated[
        int | None, Option(parser=size, metavar="SIZE", help="At most so much main memory, as 384GiB [what is free].")
    ] = None
    mmap: Annotated[
        bool | None,
        Option("--mmap/--no-mmap", help="Run from the mapped file, or from memory [from memory, if it fits]."),
    ] = None
    weights_cache: Annotated[str | None, Option(metavar="DIR", help="Keep rearranged weights for the next start.")] = (
        None
    )
    plan: Annotated[str | None, Option(metavar="FILE", help="Run this plan, as `hetero plan --json` prints it.")] = None
    graph: Annotated[
        bool | None, Option("--graph/--no-graph", help="Decode from CUDA Graphs [where there is a GPU].")
    ] = None
    sessions: Annotated[str | None, Option(metavar="DIR", help="Keep KV caches between runs; not in this version.")] = (
        None
    )

    def config(self) -> "RunConfig":
        from hetero.run_config import RunConfig

        return RunConfig(**vars(self))


@dataclass
class SharedRunFlags(RunFlags):
    """Of a server: several clients at once."""

    sequences: Annotated[int, Option(help="Answers made at once, each with room for the whole context.")] = 4


def bias(text: str) -> tuple[int, float]:
    id, _, value = text.partition("=")
    try:
        return int(id), float(value)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not ID=VALUE, a token id and a number") from None


@dataclass
class SamplingFlags:
    """One flag for each field of hetero.Sampling; None leaves its default."""

    temperature: Annotated[float | None, Option(help="0 is greedy [0.6].")] = None
    top_k: Annotated[int | None, Option(help="Keep the K most probable tokens [0: all].")] = None
    top_p: Annotated[float | None, Option(help="Keep the most probable tokens up to this share [0.95].")] = None
    min_p: Annotated[float | None, Option(help="Drop tokens less probable than this times the first [0].")] = None
    repetition_penalty: Annotated[float | None, Option(help="Divide the logits of tokens seen [1].")] = None
    presence_penalty: Annotated[float | None, Option(help="Subtract from the logits of tokens seen [0].")] = None
    frequency_penalty: Annotated[float | None, Option(help="Subtract for each time a token was seen [0].")] = None
    penalty_window: Annotated[int | None, Option(help="Tokens back that penalties look at [all].")] = None
    logit_bias: Annotated[
        list[Any] | None, Option(parser=bias, metavar="ID=VALUE", help="Add to a token's logit; repeatable.")
    ] = None
    seed: Annotated[int | None, Option(help="Same seed, same tokens [random].")] = None
    stop: Annotated[list[str] | None, Option(metavar="TEXT", help="End the answer before this text; repeatable.")] = (
        None
    )
    max_tokens: Annotated[int | None, Option(help="Tokens to generate [until the context is full].")] = None

    def given(self) -> dict[str, Any]:
        """Fields of hetero.Sampling: those that were said."""
        given = {name: value for name, value in vars(self).items() if value not in (None, [])}
        if self.logit_bias:
            given["logit_bias"] = dict(self.logit_bias)
        return given | ({"stop": tuple(self.stop)} if self.stop else {})

    def sampling(self) -> "Sampling":
        from hetero.sampler import Sampling

        return Sampling(**self.given())
