"""How much a model reasons before it answers: by the server, and in a local chat."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import hetero
from hetero import demo
from hetero.continuation import Constraint
from hetero.engine import Engine
from hetero.generate import AnswerText, Prompt, chat_prompt
from hetero.local_chat import LocalAnswers
from hetero.reasoning_budget import bounded
from hetero.request import Ended, Event, Generated, Request
from hetero.sampler import Sampling
from hetero.scheduler import Scheduler
from hetero.server.ask import Ask, JsonFormat, Thinking, Tools
from hetero.server.choice import Choice, Said
from hetero.server.constraints import constraint_for
from hetero.server.grammar import Calls, Schema
from hetero.server.loaded import Loaded
from hetero.server.prompts import prepare, prompts_of
from hetero.server.reasoning import EFFORTS, budget_of
from hetero.server.tool_calls import CallArguments, CallStarted, ToolCallParser
from hetero.template import ChatTemplate
from hetero.tokenizer import Tokenizer
from hetero.tool_format import NAMED
from tests.test_reasoning_budget import forced


def test_efforts() -> None:
    bounds = [EFFORTS[name] for name in ("minimal", "low", "medium", "high")]
    assert bounds == sorted(bounds, key=lambda bound: bound or 0) and None not in bounds
    assert budget_of(Thinking(effort="low")) == EFFORTS["low"]
    assert budget_of(Thinking(True, 77, "low")) == 77
    assert budget_of(Thinking(True)) is None and budget_of(Thinking(effort="max")) is None
    assert budget_of(Thinking(False)) == 0 == budget_of(Thinking(True, 0, "high"))
    assert budget_of(Thinking(False, 77, "high")) == 0


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    """The bundled model."""
    engine, tokenizer = hetero.load(demo.path(), hetero.RunConfig(threads=2))
    scheduler = Scheduler(engine)
    yield Loaded(scheduler, tokenizer, ChatTemplate.from_gguf(engine.file, tokenizer), engine.context, 1, "demo")
    scheduler.close()


# As R1's, whatever is asked for
OPENS = "{% for m in messages %}<｜User｜>{{ m.content }}{% endfor %}{{ '<｜Assistant｜><think>\n' }}"
QUESTION: Any = ({"role": "user", "content": "What is the capital of France?"},)
SURE = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}},
    "required": ["sure"],
    "additionalProperties": False,
}
LOOK_UP = {"type": "function", "function": {"name": "look_up", "parameters": SURE}}


def answered(loaded: Loaded, ask: Ask) -> tuple[str, str, Choice]:
    """Reasoning, answer (calls as their arguments), and what was counted."""
    (prepared,) = prepare(ask, loaded)
    events: list[Event] = []
    made = prepared.constraint() if prepared.constraint else None
    stop_ids = loaded.tokenizer.stop_ids
    loaded.scheduler.submit(Request(prepared.prompt.ids, prepared.sampling, stop_ids, events.append, constraint=made))
    while not (events and isinstance(events[-1], Ended)):
        loaded.scheduler.join(0.01)
    choice, texts = Choice(loaded.tokenizer, prepared), {True: "", False: ""}
    for delta in (delta for event in events for delta in choice.take(event)):
        if isinstance(delta, Said):
            texts[delta.thinking] += delta.text
        elif isinstance(delta, CallArguments):
            texts[False] += delta.delta
    return texts[True], texts[False], choice


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"format": JsonFormat(SURE, strict=True)},
        {"tools": Tools((LOOK_UP,), "required", parallel=False)},
        {"tools": Tools((LOOK_UP,))},
    ],
)
def test_no_reasoning_from_a_template_that_opens_it(loaded: Loaded, asked: dict[str, Any]) -> None:
    """The prompt closes it, the answer is that of a model that thought nothing, and no thought is counted."""
    r1 = replace(loaded, template=ChatTemplate(OPENS, loaded.tokenizer))
    sampling = Sampling(temperature=0.0, max_tokens=120)
    ask = Ask(sampling, QUESTION, thinking=Thinking(False), **asked)
    thoughts, text, choice = answered(r1, ask)
    assert (thoughts, choice.usage.reasoning_tokens) == ("", 0)
    assert text.strip() and text == text.lstrip()
    if "format" in asked or ask.tools.choice == "required":
        assert isinstance(json.loads(text), dict)
    if asked:
        return
    (prompt,) = prompts_of(ask, r1)
    asked_for = "What is the capital of France?<｜Assistant｜><think>\n\n</think>\n\n"
    assert prompt.opens_thinking is False and loaded.tokenizer.decode(prompt.ids).endswith(asked_for)
    assert text == answered(loaded, Ask(sampling, texts=(tuple(prompt.ids),)))[1]
    assert choice.usage.generated_tokens == len(loaded.tokenizer.encode(text)), "nothing was spent on reasoning"
    assert len(answered(r1, Ask(sampling, QUESTION))[0]) > 20, "unasked it does think"


def test_no_reasoning_that_the_model_begins_by_itself(loaded: Loaded) -> None:
    """Its marks are closed as soon as it opens them."""
    older = replace(loaded, template=ChatTemplate(OPENS.replace("<think>\n", ""), loaded.tokenizer))
    ask = Ask(Sampling(temperature=0.0, max_tokens=60), QUESTION, thinking=Thinking(False))
    (prepared,) = prepare(ask, older)
    constraint = prepared.constraint and prepared.constraint()
    assert constraint is not None and constraint.mask() is None
    constraint.accept(loaded.tokenizer.encode("<think>", special=True)[0])
    assert loaded.tokenizer.decode(forced(constraint)) == "\n</think>\n\n"
    thoughts, text, choice = answered(older, ask)
    assert (thoughts, choice.usage.reasoning_tokens) == ("", 0) and text


@pytest.mark.parametrize("asked", [{}, {"tools": Tools((LOOK_UP,))}])
def test_reasoning_that_has_ended_in_the_prompt_is_not_begun_again(loaded: Loaded, asked: dict[str, Any]) -> None:
    """Its template closes it; by the bias this model would open it, as the first word of every answer."""
    (opening,) = loaded.tokenizer.encode("<think>", special=True)
    sampling = Sampling(temperature=0.0, max_tokens=8, logit_bias={opening: 100.0})
    ask = Ask(sampling, QUESTION, thinking=Thinking(False), **asked)
    assert "</think>" in loaded.tokenizer.decode(prepare(ask, loaded)[0].prompt.ids[-3:])
    assert answered(loaded, ask)[0] == "" != answered(loaded, ask)[1]
    bare = Ask(sampling, texts=(tuple(prepare(ask, loaded)[0].prompt.ids),))
    assert answered(loaded, bare)[1].startswith("<think>")


def test_what_is_told_where_a_budget_cuts(loaded: Loaded) -> None:
    """No trace of the marks, nor of the line breaks beside them; and so many thoughts are counted."""
    ask = Ask(Sampling(temperature=0.0, max_tokens=60), QUESTION, thinking=Thinking(True, 5))
    thoughts, text, choice = answered(loaded, ask)
    assert thoughts == thoughts.strip("\n") and len(loaded.tokenizer.encode(thoughts)) <= 5
    assert 1 <= choice.usage.reasoning_tokens <= 5
    assert text and text == text.lstrip("\n") and "think>" not in thoughts + text


@pytest.mark.parametrize("budget", [1, 2])
def test_a_thought_that_goes_on_in_the_answer_is_not_closed_again(loaded: Loaded, budget: int) -> None:
    """The bundled model would: its first words behind the mark belong to the thought."""
    for question in ("Who are you?", "What is the capital of France?"):
        ask = Ask(Sampling(temperature=0.0, max_tokens=40), ({"role": "user", "content": question},))
        _, text, _ = answered(loaded, replace(ask, thinking=Thinking(True, budget)))
        assert text and "</think>" not in text


def said(scheduler: Scheduler, tokenizer: Tokenizer, prompt: Prompt, constraint: Constraint | None) -> list[int]:
    events: list[Event] = []
    sampling = Sampling(temperature=0.0, max_tokens=150)
    scheduler.submit(Request(prompt.ids, sampling, tokenizer.stop_ids, events.append, constraint=constraint))
    while not (events and isinstance(events[-1], Ended)):
        scheduler.join(0.01)
    ids = [event.id for event in events if isinstance(event, Generated)]
    assert events[-1].reason == "stop", tokenizer.decode(ids)
    return ids


def test_the_bundled_model_is_held_to_grammars(loaded: Loaded) -> None:
    """Greedy, with thinking and without: JSON, calls, and a bound on the thoughts."""
    tokenizer, template, scheduler, vocabulary = loaded.tokenizer, loaded.template, loaded.scheduler, loaded.vocabulary
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
        "required": ["capital", "sure"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": schema, "strict": True}}]
    for thinking in (False, True):
        question = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = chat_prompt(template, question, thinking)
        document = constraint_for(vocabulary, prompt, schema=Schema(schema, strict=True))
        assert document is not None
        answer_text = AnswerText(tokenizer, prompt, ())
        ids = said(scheduler, tokenizer, prompt, bounded(tokenizer, prompt, 6, document()))
        pieces = [piece for id in ids for piece in answer_text.push(id)] + answer_text.finish()
        found = json.loads("".join(piece.text for piece in pieces if not piece.thinking))
        assert set(found) == {"capital", "sure"} and isinstance(found["sure"], bool)
        thoughts = "".join(piece.text for piece in pieces if piece.thinking)
        assert bool(thoughts) == thinking and len(tokenizer.encode(thoughts)) <= 7
        call = constraint_for(vocabulary, prompt, calls=Calls(NAMED, tools, required=True, parallel=False))
        assert call is not None
        parser = ToolCallParser(NAMED)
        text = tokenizer.decode(said(scheduler, tokenizer, prompt, bounded(tokenizer, prompt, 6, call())))
        parts = parser.push(text.partition("</think>")[2] if thinking else text) + parser.finish()
        assert [part.name for part in parts if isinstance(part, CallStarted)] == ["look_up"]
        arguments = "".join(part.delta for part in parts if isinstance(part, CallArguments))
        assert set(json.loads(arguments)) == {"capital", "sure"}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Of the bundled model, without a scheduler."""
    engine, _ = hetero.load(demo.path(), hetero.RunConfig(threads=2))
    yield engine
    engine.close()


@pytest.mark.parametrize("template", [None, OPENS, OPENS.replace("<think>\n", "")])
@pytest.mark.parametrize("bias", [0.0, 100.0])
def test_a_local_chat_reasons_as_little_as_the_server(
    loaded: Loaded, engine: Engine, template: str | None, bias: float
) -> None:
    """Where the template closes it, opens it, or leaves it to the model, which by the bias would begin with it."""
    asked = replace(loaded, template=ChatTemplate(template, loaded.tokenizer)) if template else loaded
    (opening,) = loaded.tokenizer.encode("<think>", special=True)
    sampling = Sampling(temperature=0.0, max_tokens=24, logit_bias={opening: bias})
    local = LocalAnswers(engine, loaded.tokenizer, asked.template, sampling, thinking=False)
    answer = local.answer([*QUESTION])
    list(answer)
    thoughts, text, choice = answered(asked, Ask(sampling, QUESTION, thinking=Thinking(False)))
    assert (answer.thinking, answer.text) == (thoughts, text) == ("", text) and text
    assert answer.tokens == choice.usage.generated_tokens
    assert not text.startswith("<think>")
