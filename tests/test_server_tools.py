"""Tools of requests: functions are offered, others are named; which of them may be called; forms of answers."""

import json
from typing import Any

import anthropic.types
import anthropic.types.beta
import openai.types
import openai.types.chat.completion_create_params
import pytest

from hetero.sampler import Sampling
from hetero.server.ask import JsonFormat
from hetero.server.chat_form import ChatForm
from hetero.server.fields import Form
from hetero.server.messages_form import MessagesForm
from hetero.server.responses_form import ResponsesForm, echoed
from hetero.server.settings import Limits
from tests.request_forms import SAID, ask, kinds, refused


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
