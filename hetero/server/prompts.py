"""From what is asked to token ids that fit, and how to go on with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hetero.continuation import Constraint
from hetero.generate import Prompt, text_prompt
from hetero.reasoning_budget import bounded, closed
from hetero.sampler import Sampling
from hetero.server.ask import Ask
from hetero.server.constraints import constraint_for
from hetero.server.grammar import ANY_OBJECT, Calls, Schema
from hetero.server.loaded import Loaded
from hetero.server.reasoning import budget_of
from hetero.server.refusal import bad, too_long
from hetero.tool_format import ToolFormat


@dataclass(frozen=True)
class Prepared:
    """A prompt that fits. `calls`: tool calls are looked for, written so. `constraint` makes one for each choice."""

    prompt: Prompt
    ids: np.ndarray  # int32, the prompt's: made once, for all choices and apart from the event loop
    sampling: Sampling
    fills_context: bool = False  # max_tokens is all the room there is
    logprobs: int | None = None
    calls: ToolFormat | None = None
    parallel: bool = True  # the answer may go on after a call
    only_calls: bool = False  # nothing else may come
    document: bool = False  # the answer is JSON
    constraint: Callable[[], Constraint | None] | None = None


def prepare(ask: Ask, loaded: Loaded) -> list[Prepared]:
    """Renders and tokenizes; RequestError, TemplateError or Refusal where that is impossible."""
    check_ids(list(ask.sampling.logit_bias), loaded, "logit_bias")
    return [fitted(prompt, ask, loaded) for prompt in prompts_of(ask, loaded)]


def prompts_of(ask: Ask, loaded: Loaded) -> list[Prompt]:
    if ask.messages is None:
        return [prompt_of(text, ask, loaded) for text in ask.texts]
    extra = dict(ask.template)
    if ask.tools.offered:
        extra["tools"] = list(ask.tools.functions)
    check, thinking = partial(check_length, source=ask.source, loaded=loaded), ask.thinking.wanted
    make = loaded.template.begun_prompt if ask.begun else loaded.template.prompt
    prompt = Prompt(*make(ask.messages, check, thinking=thinking, **extra))
    return [closed(loaded.tokenizer, prompt) if ask.thinking.wanted is False else prompt]


def check_length(text: str, source: str, loaded: Loaded) -> None:
    """Refusal of what is far too long, before it takes a core for a minute to know how much."""
    if (least := loaded.tokenizer.least_tokens(text)) > loaded.context:
        raise too_long(least, loaded.context, source, at_least=True)


def prompt_of(text: str | tuple[int, ...], ask: Ask, loaded: Loaded) -> Prompt:
    tokenizer = loaded.tokenizer
    if isinstance(text, str):
        check_length(text, ask.source, loaded)
        return text_prompt(tokenizer, text)
    check_ids(text, loaded, ask.source)
    return Prompt(text)


def check_ids(given: Sequence[int], loaded: Loaded, source: str) -> None:
    ids, most = np.array(given, np.int64), loaded.tokenizer.vocab_size - 1
    wrong = ids[(ids < 0) | (ids > most)]
    if len(wrong):
        raise bad(f"{source} has the token id {wrong[0]}", f"the vocabulary has the ids 0 to {most}", param=source)


def fitted(prompt: Prompt, ask: Ask, loaded: Loaded) -> Prepared:
    """More tokens than there is room for means: to the end of the context."""
    asked = ask.sampling.max_tokens
    if not prompt.ids:
        raise bad("the prompt is empty", "at least one token is needed", "give some text", param=ask.source)
    room = loaded.context - len(prompt.ids)
    if room < 1:
        raise too_long(len(prompt.ids), loaded.context, ask.source)
    most = room if asked is None else min(asked, room)
    sampling = replace(ask.sampling, max_tokens=most)
    return Prepared(
        prompt,
        np.array(prompt.ids, np.int32),
        sampling,
        fills_context=most == room and most != asked,
        logprobs=ask.logprobs,
        calls=loaded.template.tool_format if ask.tools.offered else None,
        parallel=ask.tools.parallel,
        only_calls=ask.tools.required,
        document=ask.format is not None,
        constraint=constraint(ask, prompt, loaded),
    )


def constraint(ask: Ask, prompt: Prompt, loaded: Loaded) -> Callable[[], Constraint | None] | None:
    """The form of the answer, and how long it may reason first. RequestError: a schema that cannot be enforced."""
    tools, calls, schema = ask.tools, None, None
    if tools.required and prompt.begun:
        found, limit = "tool_choice asks for a call, and the last message begins an answer", "a call stands by itself"
        raise bad(found, limit, "leave the message or tool_choice out", param="tool_choice")
    if tools.offered:
        only = tools.choice if isinstance(tools.choice, tuple) else tools.allowed
        calls = Calls(loaded.template.tool_format, tools.functions, tools.required, only, tools.parallel)
    if ask.format is not None:
        schema = ANY_OBJECT if ask.format.schema is None else Schema(ask.format.schema, ask.format.strict)
    budget, tokenizer, make = budget_of(ask.thinking), loaded.tokenizer, None
    if calls is not None or schema is not None:  # a vocabulary takes a second
        make = constraint_for(loaded.vocabulary, prompt, schema=schema, calls=calls)
    if bounded(tokenizer, prompt, budget) is None:
        return make
    return lambda: bounded(tokenizer, prompt, budget, make() if make else None)
