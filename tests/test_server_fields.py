"""Fields of requests: every one that the real clients know is taken, has no effect, or is refused by its name."""

import json
import re
import typing
from pathlib import Path
from typing import Any

import anthropic.types
import anthropic.types.beta
import openai.types
import openai.types.chat.chat_completion_content_part_param
import openai.types.chat.completion_create_params
import openai.types.responses.input_token_count_params
import openai.types.responses.response_create_params
import openai.types.responses.response_input_content_param
import openai.types.responses.response_input_item_param
import pytest
from pydantic import ValidationError

from hetero.sampler import Sampling
from hetero.server.ask import Ask, JsonFormat, Thinking
from hetero.server.chat_form import ChatForm
from hetero.server.completion_form import CompletionForm
from hetero.server.fields import Form, check_refused, support
from hetero.server.messages_form import CountForm, MessagesForm
from hetero.server.refusal import Refusal
from hetero.server.responses_form import InputTokensForm, ResponsesForm, echoed
from hetero.server.settings import Limits

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
COUNTS = (InputTokensForm, CountForm)  # what these read makes a prompt, whose tokens are counted
SAID: dict[type[Form], dict[str, Any]] = {
    ChatForm: {"messages": [{"role": "user", "content": "Hi"}]},
    CompletionForm: {"prompt": "Once"},
    ResponsesForm: {"input": "Hi"},
    MessagesForm: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
    InputTokensForm: {"input": "Hi"},
    CountForm: {"messages": [{"role": "user", "content": "Hi"}]},
}


def ask(kind: Any, limits: Limits | None = None, **fields: Any) -> Ask:
    form = kind.read(SAID[kind] | fields)
    check_refused(form)
    return form.unsampled(limits or Limits()) if kind in COUNTS else form.ask(Sampling(), limits or Limits())


def refused(kind: type[Form], limits: Limits | None = None, **fields: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        ask(kind, limits, **fields)
    assert caught.value.status == 400
    return caught.value


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


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (ChatForm, {"messages": None}, "messages"),
        (ChatForm, {"messages": []}, "messages"),
        (ChatForm, {"messages": {}}, "messages"),
        (ChatForm, {"messages": [5]}, "messages[0]"),
        (ChatForm, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (ChatForm, {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        (ChatForm, {"messages": [{"role": "user"}]}, "messages[0]"),
        (ChatForm, {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (ChatForm, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        (ChatForm, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        (ChatForm, {"messages": [{"role": "tool", "content": None, "tool_call_id": "c"}]}, "messages[0]"),
        (ChatForm, {"messages": [{"role": "user", "content": "x", "audio": {}}]}, "messages[0].audio"),
        (ChatForm, {"temperature": "1"}, "temperature"),
        (ChatForm, {"temperature": -1}, "temperature"),
        (ChatForm, {"temperature": 10**400}, "temperature"),
        (ChatForm, {"temperature": True}, "temperature"),
        (ChatForm, {"top_p": 1.5}, "top_p"),
        (ChatForm, {"max_tokens": 0}, "max_tokens"),
        (ChatForm, {"max_tokens": 1.5}, "max_tokens"),
        (ChatForm, {"max_tokens": 10**30}, "max_tokens"),
        (ChatForm, {"n": 0}, "n"),
        (ChatForm, {"n": 17}, "n"),
        (ChatForm, {"seed": 2**64}, "seed"),
        (ChatForm, {"max_tokens": -2}, "max_tokens"),
        (ChatForm, {"top_k": -2}, "top_k"),
        (ChatForm, {"repeat_penalty": 0}, "repeat_penalty"),
        (ChatForm, {"enable_thinking": "yes"}, "enable_thinking"),
        (ChatForm, {"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
        (ChatForm, {"reasoning": {"exclude": True}}, "reasoning.exclude"),
        (ChatForm, {"structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        (ChatForm, {"guided_json": "{}"}, "guided_json"),
        (ChatForm, {"guided_json": {}, "response_format": {"type": "json_object"}}, "guided_json"),
        (CompletionForm, {"max_tokens": 0}, "max_tokens"),
        (ChatForm, {"top_logprobs": 3}, "top_logprobs"),
        (ChatForm, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (ChatForm, {"stream_options": {}}, "stream_options"),
        (ChatForm, {"stop": ["x"] * 17}, "stop"),
        (ChatForm, {"stop": "x" * 1025}, "stop"),
        (ChatForm, {"logit_bias": {"x": 1}}, "logit_bias"),
        (ChatForm, {"logit_bias": {"1": 101}}, "logit_bias.1"),
        (ChatForm, {"logit_bias": {str(at): 1 for at in range(1025)}}, "logit_bias"),
        (ChatForm, {"reasoning_effort": "extreme"}, "reasoning_effort"),
        (ChatForm, {"response_format": {"type": "xml"}}, "response_format.type"),
        (ChatForm, {"response_format": {"type": "json_schema"}}, "response_format"),
        (ChatForm, {"tool_choice": "required"}, "tool_choice"),
        (ChatForm, {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (ChatForm, {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (ChatForm, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (ChatForm, {"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools"),
        (ChatForm, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        (ChatForm, {"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs"),
        (ChatForm, {"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        (CompletionForm, {"prompt": []}, "prompt"),
        (CompletionForm, {"prompt": ["x"] * 17}, "prompt"),
        (CompletionForm, {"prompt": [["x"]]}, "prompt[0][0]"),
        (CompletionForm, {"prompt": [-1]}, "prompt[0]"),
        (CompletionForm, {"best_of": 2}, "best_of"),
        (CompletionForm, {"echo": True, "logprobs": 1}, "echo"),
        (ResponsesForm, {"input": []}, "input"),
        (ResponsesForm, {"input": [{"role": "user"}]}, "input[0].content"),
        (ResponsesForm, {"input": [{"type": "computer_call"}]}, "input[0].type"),
        (ResponsesForm, {"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        (ResponsesForm, {"include": ["web_search_call.results"]}, "include"),
        (ResponsesForm, {"tools": [{"type": "mcp"}]}, "tools[0].type"),
        (ResponsesForm, {"tools": [{"type": "function", "name": "f"}] * 2}, "tools"),
        (ResponsesForm, {"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        (ResponsesForm, {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        (MessagesForm, {"max_tokens": None}, "max_tokens"),
        (MessagesForm, {"mcp_servers": [{"type": "url", "url": "http://a", "name": "a"}]}, "mcp_servers"),
        (MessagesForm, {"output_format": {"type": "xml"}}, "output_format.type"),
        (ResponsesForm, {"frequency_penalty": "1"}, "frequency_penalty"),
        (MessagesForm, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        (MessagesForm, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (MessagesForm, {"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
        (MessagesForm, {"tool_choice": {"type": "any"}}, "tool_choice"),
        (MessagesForm, {"tool_choice": {"type": "tool"}}, "tool_choice"),
        (MessagesForm, {"tools": [{"name": "f", "input_schema": {}}] * 2}, "tools"),
        (MessagesForm, {"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        (MessagesForm, {"tools": [{"type": "web_search_20250305", "name": "f"}]}, "tools[0].type"),
    ],
)  # fmt: skip
def test_mistakes_name_the_field(kind: type[Form], fields: dict[str, Any], param: str) -> None:
    assert refused(kind, **fields).param == param


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


def test_what_weak_servers_gave_can_be_sent_back() -> None:
    call = {"id": "", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    told = ask(ChatForm, messages=[
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": ""},
    ]).messages  # fmt: skip
    assert told is not None
    assert told[1] == {"role": "assistant", "content": ""}
    assert (told[2]["tool_calls"], told[3]["tool_call_id"]) == ([call], "")


def test_chat_becomes_messages_of_a_template() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]
    assert ask(ChatForm, messages=messages).messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    )


def test_responses_become_messages_of_a_template() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "4"},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert ask(ResponsesForm, input=items, instructions="Be brief.").messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning_content": "hm", "content": "b", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
    )


def test_anthropic_s_blocks_become_messages_of_a_template() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "4"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
                {"type": "text", "text": "c"},
                {"type": "text", "text": "d"},
            ],
        },
    ]
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    asked = ask(MessagesForm, messages=messages, system=[{"type": "text", "text": "Be brief."}])
    assert asked.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "4"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
        {"role": "user", "content": "cd"},
    )


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


def test_formats_and_tools() -> None:
    schema = {"type": "object"}
    layout = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert ask(ChatForm, response_format=layout).format == JsonFormat(schema, strict=True)
    assert ask(ChatForm, response_format={"type": "json_object"}).format == JsonFormat()
    assert ask(ChatForm, response_format={"type": "text"}).format is None
    for fields in (
        {"response_format": {"type": "json_object", "schema": schema}},
        {"response_format": {"type": "json_schema", "schema": schema}},
        {"guided_json": schema},
        {"json_schema": schema},
        {"structured_outputs": {"json": schema}, "response_format": {"type": "text"}},
    ):
        assert ask(ChatForm, **fields).format == JsonFormat(schema), "others' names of the same"
    assert ask(ChatForm, structured_outputs={"json_object": True}).format == JsonFormat()
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    assert ask(ResponsesForm, text=text).format == JsonFormat(schema)
    assert ask(MessagesForm, output_config={"format": {"type": "json_schema", "schema": schema}}).format == JsonFormat(
        schema
    )
    older = {"type": "json_schema", "schema": {"type": "array"}}
    assert ask(MessagesForm, output_format=older).format == JsonFormat({"type": "array"})
    function = {"name": "f", "description": "d", "parameters": schema}
    plain = ({"type": "function", "function": function},)
    named = {"type": "function", "function": {"name": "f"}}
    chat = ask(ChatForm, tools=[{"type": "function", "function": function | {"strict": True}}], tool_choice=named).tools
    strict = ({"type": "function", "function": function | {"strict": True}},)
    assert (chat.functions, chat.choice, chat.parallel) == (strict, ("f",), True)
    responses = ask(ResponsesForm, tools=[{"type": "function", **function}], parallel_tool_calls=False).tools
    assert (responses.functions, responses.choice, responses.parallel) == (plain, "auto", False)
    tool = {"name": "f", "description": "d", "input_schema": schema, "cache_control": {"type": "ephemeral"}}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    messages = ask(MessagesForm, tools=[tool], tool_choice=choice).tools
    assert (messages.functions, messages.choice, messages.parallel) == (plain, "required", False)


def kinds(union: Any) -> set[str]:
    """The types of tools that a real client knows."""
    known = [one for one in typing.get_args(union) if hasattr(one, "__total__")]
    hints = [typing.get_type_hints(one).get("type") for one in known]
    return {kind for hint in hints for kind in ([hint] if isinstance(hint, str) else literals(hint))} - {None}


def literals(hint: Any) -> list[Any]:
    inner = typing.get_args(hint)
    return [found for one in inner for found in ([one] if isinstance(one, str) else literals(one))]


FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
OFFERS: dict[type[Form], tuple[Any, Any, set[str]]] = {  # a function, the union of tools, which of them are functions
    ChatForm: (
        {"type": "function", "function": {"name": "f"}},
        openai.types.chat.completion_create_params.ChatCompletionToolUnionParam,
        {"function"},
    ),
    ResponsesForm: (FUNCTION, openai.types.responses.ToolParam, {"function", "namespace"}),
    MessagesForm: (
        {"name": "f", "input_schema": {}},
        anthropic.types.ToolUnionParam | anthropic.types.beta.BetaToolUnionParam,
        {"custom"},
    ),
}


@pytest.mark.parametrize("kind", OFFERS, ids=lambda kind: kind.__name__)
def test_tools_that_are_no_functions_are_not_offered_and_told(kind: Any) -> None:
    function, union, functions = OFFERS[kind]
    others = sorted(kinds(union) - functions)
    assert len(others) >= (1 if kind is ChatForm else 14), "the client names its tools in another way"
    tools = [function, *({"type": other, "some": {"thing": 1}} for other in others)]
    form = kind.read(SAID[kind] | {"tools": tools})
    assert form.unknown() == [f"tools[{at + 1}].{other}: not offered" for at, other in enumerate(others)]
    (only,) = form.ask(Sampling(), Limits()).tools.functions
    assert only["function"]["name"] == "f"
    alone = refused(kind, tools=tools[1:])
    assert alone.param == "tools[0].type" and alone.code == "unsupported_field" and others[0] in alone.message
    assert "the server runs no tools itself" in alone.message
    none = {"type": "none"} if kind is MessagesForm else "none"
    assert ask(kind, tools=tools[1:], tool_choice=none).tools.functions == ()
    assert refused(kind, tools=[function, {"type": "telepathy"}]).param == "tools[1].type"


@pytest.mark.parametrize("kind", [ChatForm, ResponsesForm], ids=lambda kind: kind.__name__)
def test_choices_of_tools_that_are_no_functions(kind: Any) -> None:
    tools = [OFFERS[kind][0], {"type": "custom", "name": "c"}]
    for choice, said in (
        ({"type": "custom", "name": "c"}, "name a function"),
        ({"type": "web_search"}, "the server runs no tools itself"),
    ):
        found = refused(kind, tools=tools, tool_choice=choice)
        assert (found.param, found.code) == ("tool_choice.type", "unsupported_field") and said in found.message
    for wrong, param in (({"type": "telepathy"}, "tool_choice.type"), ("always", "tool_choice"), (5, "tool_choice")):
        assert refused(kind, tools=tools, tool_choice=wrong).param == param
    assert ask(kind, tools=tools, tool_choice="required").tools.choice == "required"


def allowing(kind: Any, mode: str, *names: str) -> dict[str, Any]:
    if kind is ResponsesForm:
        return {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name} for name in names]}
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("kind", [ChatForm, ResponsesForm], ids=lambda kind: kind.__name__)
def test_choices_among_some_of_the_tools(kind: Any) -> None:
    """All are in the prompt."""
    offer = OFFERS[kind][0]
    names = ("f", "g", "h")
    tools = [json.loads(json.dumps(offer).replace('"f"', f'"{name}"')) for name in names]
    for mode in ("auto", "required"):
        found = ask(kind, tools=tools, tool_choice=allowing(kind, mode, "f", "h")).tools
        assert (found.choice, found.allowed) == (mode, ("f", "h"))
        assert tuple(one["function"]["name"] for one in found.functions) == names
    assert ask(kind, tools=tools, tool_choice="auto").tools.allowed is None
    assert "'x'" in refused(kind, tools=tools, tool_choice=allowing(kind, "auto", "f", "x")).message
    assert refused(kind, tools=tools, tool_choice=allowing(kind, "auto")).param.endswith("tools")
    assert refused(kind, tools=tools, tool_choice=allowing(kind, "none", "f")).param.endswith("mode")
    if kind is ResponsesForm:
        choice = allowing(kind, "auto", "f")
        form = ResponsesForm.read({"input": "Hi", "tools": tools, "tool_choice": choice})
        assert echoed(form, Sampling())["tool_choice"] == choice


def test_functions_in_namespaces() -> None:
    inner = {"type": "function", "name": "get", "description": "d", "defer_loading": True}
    spaces = [
        {"type": "namespace", "name": name, "description": "of a server", "tools": [inner, {"type": "custom"}]}
        for name in ("mcp__a", "mcp__b__")
    ]
    form = ResponsesForm.read({"input": "Hi", "tools": [FUNCTION, *spaces]})
    names = [one["function"]["name"] for one in form.ask(Sampling(), Limits()).tools.functions]
    assert names == ["f", "mcp__a__get", "mcp__b__get"]
    assert form.unknown() == [f"tools[{at}].tools[1].custom: not offered" for at in (1, 2)]
    told = echoed(form, Sampling())["tools"]
    assert [(one["type"], one["name"]) for one in told] == [
        ("function", "f"), ("namespace", "mcp__a"), ("namespace", "mcp__b__"),
    ]  # fmt: skip
    assert [one["name"] for one in told[1]["tools"]] == ["get"]
    twice = [spaces[0], {"type": "function", "name": "mcp__a__get"}]
    assert "the same name" in refused(ResponsesForm, tools=twice).message
    assert refused(ResponsesForm, tools=[{"type": "namespace", "name": "n"}]).param == "tools[0].tools"
    assert refused(ResponsesForm, tools=[{"type": "namespace", "name": "a b", "tools": []}]).param == "tools[0].name"
    assert refused(ResponsesForm, Limits(tools=2), tools=[FUNCTION, *spaces]).param == "tools"


def test_calls_of_other_tools_are_told_as_functions() -> None:
    items = [
        {"role": "user", "content": "a"},
        {"type": "function_call", "call_id": "c1", "namespace": "mcp__a", "name": "get", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "2"},
        {"type": "local_shell_call", "call_id": "c3", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "call_id": "c3", "output": "3"},
    ]
    told = ask(ResponsesForm, input=items).messages
    assert told is not None
    assert [one["tool_calls"][0]["function"] for one in told if one["role"] == "assistant"] == [
        {"name": "mcp__a__get", "arguments": "{}"},
        {"name": "apply_patch", "arguments": '{"input": "*** Begin"}'},
        {"name": "local_shell", "arguments": '{"type": "exec", "command": ["ls"]}'},
    ]
    assert [(one["tool_call_id"], one["content"]) for one in told if one["role"] == "tool"] == [
        ("c1", "1"), ("c2", "2"), ("c3", "3"),
    ]  # fmt: skip
    for kind in ("web_search_call", "compaction", "item_reference", "mcp_call", "shell_call"):
        found = refused(ResponsesForm, input=[*items, {"type": kind}])
        assert (found.param, found.code) == ("input[7].type", "unsupported_field") and "leave it out" in found.message
    for item, param in (
        ({"type": "thought"}, "input[0].type"),
        ({"type": 5}, "input[0].type"),
        ({"type": "custom_tool_call", "call_id": "c", "name": "n"}, "input[0].input"),
        ({"type": "local_shell_call", "call_id": "c"}, "input[0].action"),
    ):
        assert refused(ResponsesForm, input=[item]).param == param


def test_each_item_of_the_real_client_is_taken_or_refused_by_name() -> None:
    known = kinds(openai.types.responses.response_input_item_param.ResponseInputItemParam)
    assert len(known) > 20
    for kind in known - {"message", "reasoning"}:
        found = refused(ResponsesForm, input=[{"type": kind}])
        assert found.code == "unsupported_field" or "is missing" in found.message, kind


@pytest.mark.parametrize(
    ("kind", "union", "taken"),
    [
        (ChatForm, openai.types.chat.chat_completion_content_part_param.ChatCompletionContentPartParam, {"text"}),
        (ResponsesForm, openai.types.responses.response_input_content_param.ResponseInputContentParam, {"input_text"}),
        (MessagesForm, anthropic.types.ContentBlockParam, {"text", "tool_use", "tool_result"}),
        (MessagesForm, anthropic.types.beta.BetaContentBlockParam, {"text", "tool_use", "tool_result"}),
    ],
)
def test_each_part_of_the_real_client_is_taken_or_refused_by_name(kind: Any, union: Any, taken: set[str]) -> None:
    known = kinds(union) - taken - {"thinking", "redacted_thinking"}
    assert len(known) > 1
    for one in known:
        message = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": one}]}
        name = "input" if kind is ResponsesForm else "messages"
        found = refused(kind, **{name: [message]})
        assert (found.param, found.code) == (f"{name}[0].content[1].type", "unsupported_field")
        text_only = {"image_url", "input_audio", "file", "input_image", "input_file", "image", "document"}
        assert one not in text_only or "the model reads text only" in found.message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"store": True}, "store is true; not implemented: nothing is stored; leave it out, or say false"),
        ({"functions": [{"name": "x", "y": None}]}, 'functions is [{"name": "x", "y": null}]; not implemented: '),
        ({"model": ""}, "model is ''; it must be a string of at least 1 character"),
        ({"model": "\ud800"}, "model is '\\ud800'; it must be Unicode text, which has no lone surrogates"),
        ({"\ud800": 1}, "a name in the body has a lone surrogate; names are Unicode text"),
        ({"logprobs": 1}, "logprobs is 1; it must be true or false"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1 or -1"),
        ({"top_p": 2}, "top_p is 2; it must be at most 1"),
        ({"stop": 5}, "stop is 5; it must be a string or a list"),
        ({"logit_bias": []}, "logit_bias is []; it must be an object"),
        ({"tools": [5]}, "tools[0] is 5; it must be an object"),
        ({"tool_choice": True}, "tool_choice is true; it must be 'none', 'auto' or 'required'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function is missing; it is required"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].function is missing; it is required"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]},
         "tools[0].function.name is 'a b'; it must be 1 to 64 letters, digits or any of _ - ."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_the_words_of_json(fields: dict[str, Any], said: str) -> None:
    assert refused(ChatForm, **fields).message.startswith(said)


def test_no_complaint_names_a_class_or_pydantic_s_forms() -> None:
    """Of any field with any value of a wrong type."""
    for kind in KNOWN:
        for name in kind.model_fields:
            for value in (5, -5, 0.5, "x", "", True, [], [5], [[]], {}, {"type": "x"}, [{"type": "x"}], [{}]):
                try:
                    ask(kind, **{name: value}) if kind is not CountForm else kind.read(SAID[kind] | {name: value})
                except Refusal as found:
                    inside = r"Input|valid |dictionary|instance|constrained|literal\[|True|False|None"
                    assert not re.search(inside, found.message), found.message
                    assert found.param is None or re.fullmatch(r"[a-z_\[\]0-9.]+", found.param)


@pytest.mark.parametrize("field", ["messages", "tools", "stop"])
def test_of_many_wrong_values_one_is_complained_of(field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatForm.model_validate({"messages": [{"role": "user", "content": "Hi"}], field: [None] * 1000})
    assert caught.value.error_count() <= 2
    with pytest.raises(ValidationError) as caught:
        ChatForm.model_validate({"messages": [], "logit_bias": dict.fromkeys(map(str, range(1000)), "x")})
    assert caught.value.error_count() == 1
