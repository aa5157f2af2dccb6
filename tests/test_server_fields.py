"""Fields of requests: every one that the real clients know is taken, has no effect, or is refused by its name."""

import typing
from pathlib import Path
from typing import Any

import anthropic.types
import anthropic.types.beta
import openai.types
import openai.types.chat.completion_create_params
import openai.types.responses.input_token_count_params
import openai.types.responses.response_create_params
import pytest

from hetero.sampler import Sampling
from hetero.server.ask import Thinking
from hetero.server.chat_form import ChatForm
from hetero.server.completion_form import CompletionForm
from hetero.server.fields import Form, check_refused, support
from hetero.server.messages_form import CountForm, MessagesForm
from hetero.server.responses_form import InputTokensForm, ResponsesForm
from hetero.server.settings import Limits
from tests.request_forms import COUNTS, SAID, ask, refused

ROOT = Path(__file__).parent.parent
KNOWN = {
    ChatForm: openai.types.chat.completion_create_params.CompletionCreateParamsStreaming,
    CompletionForm: openai.types.completion_create_params.CompletionCreateParamsStreaming,
    ResponsesForm: openai.types.responses.response_create_params.ResponseCreateParamsStreaming,
    MessagesForm: anthropic.types.message_create_params.MessageCreateParamsStreaming,
    InputTokensForm: openai.types.responses.input_token_count_params.InputTokenCountParams,
    CountForm: anthropic.types.MessageCountTokensParams,
}
BETA: dict[type[Form], Any] = {
    MessagesForm: anthropic.types.beta.message_create_params.MessageCreateParamsStreaming,
    CountForm: anthropic.types.beta.MessageCountTokensParams,
}


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.__name__)
def test_no_field_of_the_real_clients_is_unknown(kind: type[Form]) -> None:
    for params in (KNOWN[kind], BETA.get(kind, KNOWN[kind])):
        names = set(typing.get_type_hints(params))
        assert names and names - set(kind.model_fields) == set()


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.__name__)
def test_each_field_is_documented_as_what_it_is(kind: type[Form]) -> None:
    """docs/serve.md has a table for each interface: | field | taken, no effect, refused | ..."""
    if kind in COUNTS:
        return
    text = (ROOT / "docs" / "serve.md").read_text()
    section = text.split(f"<!-- {kind.__name__} -->")[1].split("\n## ")[0].split("<!--")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in section.splitlines() if line.startswith("| `")]
    documented = {name.strip("` "): how for names, how in rows for name in names.split(",")}
    assert documented == {name: support(field) for name, field in kind.model_fields.items()}


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.__name__)
def test_what_is_refused_is_refused_by_name(kind: type[Form]) -> None:
    for name, field in kind.model_fields.items():
        if support(field) == "refused":
            found = refused(kind, **{name: {"some": "thing"}})
            assert found.param == name and name in found.message and found.code == "unsupported_field"
            ask(kind, **{name: None})
            for neutral in field.json_schema_extra["x-neutral"]:  # type: ignore[index, call-overload]
                ask(kind, **{name: neutral})
        if support(field) == "no effect" and name != "metadata":
            ask(kind, **{name: {"some": "thing"}})


def test_unknown_fields_are_named() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "Hi", "colour": 1}], "mood": 2}
    form = ChatForm.read({"messages": [message], "tempratur": 3, "stream_options": {"x": 4}})
    assert sorted(form.unknown()) == ["messages[].content[].colour", "messages[].mood", "stream_options.x", "tempratur"]
    assert ChatForm.read(SAID[ChatForm]).unknown() == []


def test_what_claude_code_always_sends_is_taken_and_named() -> None:
    edits = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    for kind in (MessagesForm, CountForm):
        form = kind.read(SAID[kind] | {"context_management": edits, "metadata": {"user_id": "u"}, "betas": ["b"]})
        check_refused(form)
        assert "context_management" in form.unknown() and "betas" not in form.unknown()
        assert kind.read(SAID[kind] | {"context_management": None}).unknown() == []


def test_limits_of_numbers() -> None:
    limits = Limits(messages=2, tools=1)
    two = {"messages": [{"role": "user", "content": "Hi"}] * 3}
    assert "at most 2" in refused(ChatForm, limits, **two).message
    assert "at most 2" in refused(MessagesForm, limits, **two).message
    assert "at most 2" in refused(ResponsesForm, limits, input=[{"role": "user", "content": "Hi"}] * 3).message
    tools = [{"type": "function", "function": {"name": name}} for name in "ab"]
    assert "at most 1" in refused(ChatForm, limits, tools=tools).message
    flat = [{"type": "function", "name": name} for name in "ab"]
    assert "at most 1" in refused(ResponsesForm, limits, tools=flat).message
    custom = [{"name": name, "input_schema": {}} for name in "ab"]
    assert "at most 1" in refused(MessagesForm, limits, tools=custom).message


def test_sampling() -> None:
    found = ask(
        ChatForm,
        temperature=0,
        top_p=0.5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"7": -100},
        seed=-1,
        stop="x",
        max_tokens=5,
        max_completion_tokens=6,
        top_k=3,
        min_p=0.25,
        repetition_penalty=1.5,
        penalty_window=9,
    ).sampling
    assert found == Sampling(
        temperature=0.0,
        top_p=0.5,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        logit_bias={7: -100.0},
        seed=2**64 - 1,
        stop=("x",),
        max_tokens=6,
        top_k=3,
        min_p=0.25,
        repetition_penalty=1.5,
        penalty_window=9,
    )
    assert ask(ChatForm).sampling == Sampling()
    responses = ask(ResponsesForm, stop="x", frequency_penalty=-1, seed=3, top_k=2, max_output_tokens=7).sampling
    assert responses == Sampling(stop=("x",), frequency_penalty=-1.0, seed=3, top_k=2, max_tokens=7)
    assert ask(CompletionForm).sampling.max_tokens == 16
    assert ask(MessagesForm, stop_sequences=["a", "b"], temperature=1).sampling.stop == ("a", "b")


def test_values_that_ask_for_nothing() -> None:
    """As other servers' clients send them."""
    for kind in (ChatForm, CompletionForm):
        for name in ("max_tokens", "n_predict"):
            most = ask(kind, **{name: -1}).sampling.max_tokens
            assert most is not None and most > 1 << 30, "as many as there is room for"
        assert ask(kind, n_predict=5).sampling.max_tokens == 5
        assert ask(kind, max_tokens=6, n_predict=5).sampling.max_tokens == 6
        found = ask(kind, top_k=-1, stop=["", "x"], repeat_penalty=1.25).sampling
        assert (found.top_k, found.stop, found.repetition_penalty) == (0, ("x",), 1.25)
        assert ask(kind, repeat_penalty=1.25, repetition_penalty=1.5).sampling.repetition_penalty == 1.5
        assert ask(kind, stop="").sampling.stop == ()
    assert ask(ChatForm, max_completion_tokens=-1).sampling.max_tokens == 1 << 31
    responses = ask(ResponsesForm, max_output_tokens=-1, top_k=-1)
    assert (responses.sampling.max_tokens, responses.sampling.top_k) == (1 << 31, 0)
    assert ask(MessagesForm, top_k=-1).sampling.top_k == 0
    assert ask(ChatForm, logprobs=False, top_logprobs=0).logprobs is None
    assert ask(MessagesForm, stop_sequences=[""]).sampling.stop == ()


def test_reasoning() -> None:
    assert ask(ChatForm).thinking == Thinking()
    assert ask(ChatForm, reasoning_effort="none").thinking == Thinking(False)
    assert ask(ChatForm, reasoning_effort="low").thinking == Thinking(True, None, "low")
    assert ask(ChatForm, thinking={"type": "enabled", "budget_tokens": 5}).thinking == Thinking(True, 5)
    assert ask(ChatForm, chat_template_kwargs={"enable_thinking": False}).thinking == Thinking(False)
    assert ask(ChatForm, chat_template_kwargs={"thinking": True, "style": 1}).template == {"style": 1}
    assert ask(ChatForm, enable_thinking=False).thinking == Thinking(False)
    assert ask(ChatForm, reasoning={"effort": "high"}).thinking == Thinking(True, None, "high")
    assert ask(ChatForm, reasoning={"effort": "none"}).thinking == Thinking(False)
    assert ask(ChatForm, reasoning={"max_tokens": 7}).thinking == Thinking(True, 7)
    assert ask(ChatForm, reasoning={"enabled": False}, enable_thinking=True).thinking == Thinking(False)
    assert ask(ChatForm, enable_thinking=False, thinking={"type": "enabled"}).thinking == Thinking(True)
    assert ask(ResponsesForm, reasoning={"effort": "high"}).thinking == Thinking(True, None, "high")
    assert ask(MessagesForm, thinking={"type": "disabled"}).thinking == Thinking(False)
    assert ask(MessagesForm, thinking={"type": "enabled", "budget_tokens": 5}).thinking == Thinking(True, 5)
    assert ask(MessagesForm, output_config={"effort": "max"}).thinking == Thinking(None, None, "max")
