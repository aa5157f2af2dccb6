"""`hetero eval`: how well a model knows a text."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

from typer import Option

from hetero.commands.flags import RunFlags
from hetero.commands.model import File, path_of
from hetero.commands.options import Json


@dataclass
class EvalFlags:
    """What `eval` measures; the same names as hetero.evaluate.Evaluation."""

    text: Annotated[str, Option(metavar="FILE", help="The text, UTF-8; `-` reads stdin.")]
    window: Annotated[int | None, Option(help="Tokens evaluated together [512, at most the context].")] = None
    stride: Annotated[int | None, Option(help="Let windows overlap; each scores its last STRIDE tokens.")] = None
    reference: Annotated[str | None, Option(metavar="MODEL", help="Compare with this GGUF, or with llama.cpp.")] = None
    reference_kv: Annotated[
        Literal["f32", "f16", "q8_0"] | None, Option(help="KV cache of the reference; alone: the same file.")
    ] = None
    expert_counts: Annotated[
        str | None, Option(metavar="FILE", help="Write how often each expert was chosen, as JSON.")
    ] = None


def eval(model: File, as_json: Json = False, *, flags: EvalFlags, run: RunFlags) -> None:
    """Measure perplexity on a text. With a reference, also how far the model is from it (KL divergence)."""
    from hetero.evaluate import Evaluation, describe, run_evaluation
    from hetero.terminal import Screen

    names = vars(flags) | {"reference": None if flags.reference is None else path_of(flags.reference)}
    result = run_evaluation(Evaluation(model=path_of(model), **names), run.config(), Screen())
    print(json.dumps(result, indent=1) if as_json else describe(result))
