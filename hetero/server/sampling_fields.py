"""Fields that say how tokens are chosen, and how many."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from hetero.sampler import Sampling
from hetero.server.fields import Form, refuse
from hetero.server.refusal import bad
from hetero.server.settings import Limits

Temperature = Annotated[float, Field(ge=0, le=100, description="0 takes the most probable token each time.")]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-100, le=100)]
NO_BOUND = 1 << 31
Tokens = Annotated[int, Field(ge=1, le=NO_BOUND)]
OpenTokens = Tokens | Literal[-1]  # as many as there is room for
TopK = Annotated[int, Field(ge=0, le=1 << 31)] | Literal[-1]  # 0 and -1 keep all
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
TopLogprobs = Annotated[int, Field(ge=0, le=20)]
MODEL_ENDS = "the model ends its answer"


class SamplingFields(Form):
    """Of OpenAI's interfaces. What is left out is as the server was started with."""

    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, description="Token id to what is added to its logit."
    )
    seed: Seed | None = None
    stop: str | list[str] | None = None
    top_k: TopK | None = Field(default=None, description="Extension: 0 and -1 keep all.")
    min_p: Share | None = Field(default=None, description="Extension.")
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(default=None, description="Extension.")
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None, description="Extension: another name of repetition_penalty."
    )
    penalty_window: Annotated[int, Field(ge=0, le=1 << 31)] | None = Field(
        default=None, description="Extension: tokens back that penalties look at."
    )
    ignore_eos: Any = refuse(MODEL_ENDS, False)
    min_tokens: Any = refuse(MODEL_ENDS, 0)
    stop_token_ids: Any = refuse("stop takes texts", [])


def sampled(fields: SamplingFields, defaults: Sampling, max_tokens: int | None, limits: Limits) -> Sampling:
    """`max_tokens` -1: no bound. RequestError for what the sampler does not take."""
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty")
    given: dict[str, Any] = {name: getattr(fields, name) for name in (*names, "penalty_window")}
    if fields.repetition_penalty is None:
        given["repetition_penalty"] = fields.repeat_penalty
    if fields.top_k == -1:
        given["top_k"] = 0
    if fields.logit_bias is not None:
        given["logit_bias"] = biases(fields.logit_bias, limits)
    if fields.seed is not None:
        given["seed"] = fields.seed % (1 << 64)
    if fields.stop is not None:
        given["stop"] = stops([fields.stop] if isinstance(fields.stop, str) else fields.stop, limits, "stop")
    if max_tokens is not None:
        given["max_tokens"] = NO_BOUND if max_tokens == -1 else max_tokens
    return replace(defaults, **{name: value for name, value in given.items() if value is not None})


def biases(given: dict[str, float], limits: Limits) -> dict[int, float]:
    if len(given) > limits.logit_biases:
        raise bad(f"logit_bias has {len(given):,} entries", f"at most {limits.logit_biases}", param="logit_bias")
    found: dict[int, float] = {}
    for id, value in given.items():
        if not id.isascii() or not id.isdecimal() or len(id) > 9:
            raise bad(
                f"logit_bias has the key {id[:20]!r}", "keys are token ids, as /tokenize gives", param="logit_bias"
            )
        found[int(id)] = value
    return found


def stops(given: list[str], limits: Limits, name: str) -> tuple[str, ...]:
    if len(given) > limits.stop_strings:
        raise bad(f"{name} has {len(given):,} strings", f"at most {limits.stop_strings}", param=name)
    for text in given:
        if len(text) > limits.stop_characters:
            found = f"{name} holds a string of {len(text):,} characters"
            raise bad(found, f"at most {limits.stop_characters:,}", "leave it out", param=name)
    return tuple(text for text in given if text)  # an empty one asks for nothing
