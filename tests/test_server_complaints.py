"""What is said of a request that is wrong: which field, what was found, and what it must be, in the words of JSON."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from hetero.server.chat_form import ChatForm
from hetero.server.completion_form import CompletionForm
from hetero.server.fields import Form
from hetero.server.messages_form import CountForm, MessagesForm
from hetero.server.refusal import Refusal
from hetero.server.responses_form import ResponsesForm
from tests.request_forms import SAID, ask, refused


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
        ({"n": 200}, "n is 200; it must be at most 16"),
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
    for kind in SAID:
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
