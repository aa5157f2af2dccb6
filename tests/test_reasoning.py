"""The bound on thinking: what is forced, when, and what comes after it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import hetero
from hetero import demo
from hetero.continuation import Constraint
from hetero.engine import Engine
from hetero.generate import AnswerText, Prompt, chat_prompt
from hetero.gguf import open_gguf
from hetero.local_chat import LocalAnswers
from hetero.reasoning_budget import ReasoningBudget, StaysClosed, bounded
from hetero.request import Ended, Event, Generated, Request
from hetero.sampler import Sampling
from hetero.scheduler import Scheduler
from hetero.server.ask import Ask, JsonFormat, Thinking, Tools
from hetero.server.choice import Choice, Said
from hetero.server.constraints import Vocabulary, constraint_for
from hetero.server.grammar import Calls, Schema
from hetero.server.loaded import Loaded
from hetero.server.prompts import prepare, prompts_of
from hetero.server.reasoning import EFFORTS, budget_of
from hetero.server.tool_calls import CallArguments, CallStarted, ToolCallParser
from hetero.template import ChatTemplate
from hetero.tokenizer import Tokenizer
from hetero.tool_format import NAMED

THINKS = Prompt([1], opens_thinking=True)
MAY_THINK = Prompt([1], opens_thinking=False)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    with open_gguf(demo.path()) as file:
        return Vocabulary(Tokenizer.from_gguf(file))


def choices(constraint: Constraint) -> list[int]:
    """What may come; empty where anything may."""
    mask = constraint.mask()
    return [] if mask is None else np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def only(constraint: Constraint) -> int | None:
    """The one token that may come; None where there is a choice."""
    found = choices(constraint)
    return found[0] if len(found) == 1 else None


def forced(constraint: Constraint) -> list[int]:
    ids = []
    while (id := only(constraint)) is not None:
        constraint.accept(id)
        ids.append(id)
    return ids


def test_the_end_is_forced_token_by_token(vocabulary: Vocabulary) -> None:
    encode = vocabulary.tokenizer.encode
    ending = encode("\n</think>\n\n")
    constraint = ReasoningBudget(vocabulary.tokenizer, THINKS, 5)
    for id in range(300, 305):
        assert only(constraint) is None
        constraint.accept(id)
    assert forced(constraint) == ending
    assert constraint.tokens == 5 and not constraint.ended
    (closing,) = encode("</think>", special=True)
    for id in encode("the answer is free, but does not end the thinking again"):
        constraint.accept(id)
        assert set(range(vocabulary.size)) - set(choices(constraint)) == {closing}
    assert constraint.tokens == 5


def test_nothing_is_forced_in_time(vocabulary: Vocabulary) -> None:
    constraint = ReasoningBudget(vocabulary.tokenizer, THINKS, 100)
    for id in vocabulary.tokenizer.encode("brief</think>" + "and " * 200):
        constraint.accept(id)
        assert constraint.mask() is None
    assert constraint.tokens == len(vocabulary.tokenizer.encode("brief"))


def test_what_was_cut_off_is_answered(vocabulary: Vocabulary) -> None:
    """The first token after what was forced does not end the text; nothing else is forbidden."""
    stops = vocabulary.tokenizer.stop_ids
    make = constraint_for(vocabulary, THINKS, schema=Schema({"type": "integer"}, strict=True))
    assert make is not None
    free, ended = (ReasoningBudget(vocabulary.tokenizer, THINKS, budget) for budget in (2, 100))
    held = ReasoningBudget(vocabulary.tokenizer, THINKS, 2, make())
    for constraint, most in ((free, vocabulary.size - len(stops)), (held, 100)):
        for id in (300, 301):
            constraint.accept(id)
        forced(constraint)
        found = choices(constraint)
        assert not stops & set(found) and 1 < len(found) <= most
        constraint.accept(vocabulary.tokenizer.encode("7")[0])
        assert stops <= set(choices(constraint))
    for id in vocabulary.tokenizer.encode("short</think>"):
        ended.accept(id)
    assert ended.mask() is None, "what came to its end by itself is left alone"


def test_no_budget_at_all(vocabulary: Vocabulary) -> None:
    constraint = ReasoningBudget(vocabulary.tokenizer, THINKS, 0)
    assert vocabulary.tokenizer.decode(forced(constraint)) == "\n</think>\n\n"
    assert constraint.tokens == 0


def test_no_character_is_cut(vocabulary: Vocabulary) -> None:
    letter = vocabulary.tokenizer.encode("鿆")
    assert len(letter) == 3, "a character of three tokens"
    constraint = ReasoningBudget(vocabulary.tokenizer, THINKS, 1)
    for id in letter:
        assert only(constraint) is None
        constraint.accept(id)
    assert forced(constraint)
    constraint = ReasoningBudget(vocabulary.tokenizer, THINKS, 1)
    for _ in range(4):  # what never becomes a character does not delay it for ever
        assert only(constraint) is None
        constraint.accept(letter[0])
    assert forced(constraint)


def test_thinking_that_the_model_may_begin(vocabulary: Vocabulary) -> None:
    encode = vocabulary.tokenizer.encode
    silent, thinks = (ReasoningBudget(vocabulary.tokenizer, MAY_THINK, 1) for _ in range(2))
    for id in encode("no thoughts here"):
        silent.accept(id)
        assert silent.mask() is None
    assert silent.tokens == 0
    for id in encode("<think>")[:1] + encode(" word")[:1]:
        assert thinks.mask() is None
        thinks.accept(id)
    assert forced(thinks) and thinks.tokens == 1


def test_what_follows_is_held_to_the_grammar(vocabulary: Vocabulary) -> None:
    for prompt in (THINKS, MAY_THINK):
        make = constraint_for(vocabulary, prompt, schema=Schema({"const": 7}, strict=True))
        assert make is not None
        constraint = bounded(vocabulary.tokenizer, prompt, 2, make())
        assert constraint is not None
        for id in [*vocabulary.tokenizer.encode("<think>" if prompt is MAY_THINK else ""), 300, 301]:
            constraint.accept(id)
        forced(constraint)
        for id in vocabulary.tokenizer.encode("7"):
            constraint.accept(id)
        assert constraint.ended


def test_bounds_only_where_there_is_thinking(vocabulary: Vocabulary) -> None:
    make = constraint_for(vocabulary, THINKS, schema=Schema({}))
    assert make is not None
    inner = make()
    assert bounded(vocabulary.tokenizer, THINKS, None, inner) is inner
    assert bounded(vocabulary.tokenizer, THINKS, None) is None
    closed = Prompt(vocabulary.tokenizer.encode("</think>"), opens_thinking=False)
    assert bounded(vocabulary.tokenizer, closed, 5, inner) is inner
    assert isinstance(bounded(vocabulary.tokenizer, THINKS, 5), ReasoningBudget)


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


def test_what_stays_closed(vocabulary: Vocabulary) -> None:
    """Not behind white space either; a later mark is the answer's text, and a grammar inside is kept to."""
    encode = vocabulary.tokenizer.encode
    (opening,), (letter,) = encode("<think>", special=True), encode("7")
    closed = Prompt(encode("</think>", special=True), opens_thinking=False)
    constraint = bounded(vocabulary.tokenizer, closed, 0)
    assert isinstance(constraint, StaysClosed)
    for id in encode("\n") + encode(" "):
        assert set(range(vocabulary.size)) - set(choices(constraint)) == {opening}
        constraint.accept(id)
    assert opening not in choices(constraint)
    constraint.accept(letter)
    assert constraint.mask() is None and not constraint.ended
    make = constraint_for(vocabulary, closed, schema=Schema({"const": 7}, strict=True))
    assert make is not None
    held = bounded(vocabulary.tokenizer, closed, 0, make())
    assert held is not None and letter in choices(held) and len(choices(held)) < 100
    held.accept(letter)
    assert held.ended
    for budget, prompt in ((None, closed), (5, closed), (0, Prompt(closed.ids))):
        assert bounded(vocabulary.tokenizer, prompt, budget) is None, "no wish, a bound, plain text"


def test_thinking_behind_white_space_is_bounded(vocabulary: Vocabulary) -> None:
    constraint = ReasoningBudget(vocabulary.tokenizer, MAY_THINK, 0)
    for id in vocabulary.tokenizer.encode(" \n") + vocabulary.tokenizer.encode("<think>", special=True):
        assert constraint.mask() is None
        constraint.accept(id)
    assert vocabulary.tokenizer.decode(forced(constraint)) == "\n</think>\n\n"
    assert vocabulary.tokenizer.encode("<think>", special=True)[0] not in choices(constraint), "nor begun again"


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


def test_the_bundled_model_is_held_to_grammars(vocabulary: Vocabulary, loaded: Loaded) -> None:
    """Greedy, with thinking and without: JSON, calls, and a bound on the thoughts."""
    tokenizer, template, scheduler = loaded.tokenizer, loaded.template, loaded.scheduler
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
        ids = said(scheduler, tokenizer, prompt, bounded(vocabulary.tokenizer, prompt, 6, document()))
        pieces = [piece for id in ids for piece in answer_text.push(id)] + answer_text.finish()
        found = json.loads("".join(piece.text for piece in pieces if not piece.thinking))
        assert set(found) == {"capital", "sure"} and isinstance(found["sure"], bool)
        thoughts = "".join(piece.text for piece in pieces if piece.thinking)
        assert bool(thoughts) == thinking and len(tokenizer.encode(thoughts)) <= 7
        call = constraint_for(vocabulary, prompt, calls=Calls(NAMED, tools, required=True, parallel=False))
        assert call is not None
        parser = ToolCallParser(NAMED)
        text = tokenizer.decode(said(scheduler, tokenizer, prompt, bounded(vocabulary.tokenizer, prompt, 6, call())))
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
