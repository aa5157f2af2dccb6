"""Messages of the three interfaces: what a template is given of them, and parts that are no text."""

from typing import Any

import anthropic.types
import anthropic.types.beta
import openai.types
import openai.types.chat.chat_completion_content_part_param
import openai.types.responses.response_input_content_param
import openai.types.responses.response_input_item_param
import pytest

from hetero.server.chat_form import ChatForm
from hetero.server.messages_form import MessagesForm
from hetero.server.responses_form import ResponsesForm
from tests.request_forms import ask, kinds, refused


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
