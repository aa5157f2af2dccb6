"""Answers that go on with the assistant's last message, through OpenAI's and Anthropic's own clients: what follows a
part of the model's own answer is the rest of it."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.own_answers import OwnAnswers
from tests.served import Served

KEY = "a-key-of-tests"
FRANCE = "What is the capital of France?"
QUESTION: Any = {"role": "user", "content": FRANCE}
GREEDY: Any = {"model": "demo", "temperature": 0, "max_tokens": 60}
MESSAGES: Any = {"model": "demo", "max_tokens": 60, "extra_body": {"temperature": 0}}
YES = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": YES}}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": YES}}


@pytest.fixture(scope="module")
def chat(demo_server: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{demo_server.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def claude(demo_server: Served) -> Iterator[Anthropic]:
    with Anthropic(base_url=demo_server.url, api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def said(content: Any, **more: Any) -> Any:
    return {"role": "assistant", "content": content, **more}


def halves(own: OwnAnswers, text: str) -> list[tuple[str, str, int]]:
    """Each way to cut it between two tokens: both parts, and how many tokens the first one has."""
    ids = own.tokenizer.encode(text)
    decode = own.tokenizer.decode
    return [(decode(ids[:at]), decode(ids[at:]), at) for at in range(1, len(ids))]


def test_a_chat_goes_on_with_any_part_of_an_answer(chat: OpenAI, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE)
    for begin, rest, tokens in halves(own_answers, own["text"]):
        answer = chat.chat.completions.create(messages=[QUESTION, said(begin, prefix=True)], **GREEDY)
        (choice,) = answer.choices
        assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", rest, "stop")
        assert answer.usage and answer.usage.prompt_tokens == own["prompt_tokens"] + tokens
        assert answer.usage.completion_tokens == own["generated_tokens"] - tokens
        as_vllm: Any = {"continue_final_message": True, "add_generation_prompt": False}
        again = chat.chat.completions.create(messages=[QUESTION, said(begin)], extra_body=as_vllm, **GREEDY)
        assert again.choices == answer.choices


def test_messages_go_on_with_any_part_of_an_answer(claude: Anthropic, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE)
    for begin, rest, tokens in halves(own_answers, own["text"]):
        blocks = [{"type": "text", "text": begin[:3]}, {"type": "text", "text": begin[3:]}]
        for content in (begin, blocks):
            answer = claude.messages.create(messages=[QUESTION, said(content)], **MESSAGES)
            (block,) = answer.content
            assert block.type == "text" and block.text == rest and answer.stop_reason == "end_turn"
            read = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
            assert read == own["prompt_tokens"] + tokens
            assert claude.messages.count_tokens(model="demo", messages=[QUESTION, said(content)]).input_tokens == read


def test_reasoning_goes_on(chat: OpenAI, claude: Anthropic, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE, thinking=True)
    assert own["thinking"] and own["text"]
    for begin, rest, _ in halves(own_answers, own["thinking"]):
        message = said("", reasoning_content=begin, prefix=True)
        found = chat.chat.completions.create(messages=[QUESTION, message], **GREEDY).choices[0].message
        assert (found.model_extra or {})["reasoning_content"] == rest and found.content == own["text"]
        thought: Any = {"type": "thinking", "thinking": begin, "signature": "unsigned"}
        blocks = claude.messages.create(messages=[QUESTION, said([thought])], **MESSAGES).content
        assert [block.type for block in blocks] == ["thinking", "text"]
        assert blocks[0].thinking == rest and blocks[1].text == own["text"]  # type: ignore[union-attr]
    for begin, rest, _ in halves(own_answers, own["text"]):
        message = said(begin, reasoning_content=own["thinking"], prefix=True)
        found = chat.chat.completions.create(messages=[QUESTION, message], **GREEDY).choices[0].message
        assert found.content == rest and "reasoning_content" not in (found.model_extra or {})


def test_reasoning_that_is_enough(chat: OpenAI, own_answers: OwnAnswers) -> None:
    """It is closed where none is wanted any more, and at the end of its budget, which counts new tokens."""
    thoughts = own_answers.chat(FRANCE, thinking=True)["thinking"]
    for enough in (said("", reasoning_content=thoughts), said(f"<think>{thoughts}")):
        fields: Any = {"messages": [QUESTION, {**enough, "prefix": True}], "reasoning_effort": "none"}
        answer = chat.chat.completions.create(**fields, **GREEDY)
        assert answer.choices[0].message.content and answer.usage
        assert answer.usage.completion_tokens_details and answer.usage.completion_tokens_details.reasoning_tokens == 0
    begun = said("", reasoning_content="The user", prefix=True)
    budget: Any = {"thinking": {"type": "enabled", "budget_tokens": 2}}
    message = chat.chat.completions.create(messages=[QUESTION, begun], extra_body=budget, **GREEDY).choices[0].message
    assert (message.model_extra or {})["reasoning_content"] == " asks for" and message.content


def test_streams_and_choices_and_logprobs(chat: OpenAI, claude: Anthropic, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE)
    begin, rest, _ = halves(own_answers, own["text"])[3]
    messages: Any = [QUESTION, said(begin, prefix=True)]
    chunks = list(chat.chat.completions.create(messages=messages, stream=True, n=2, **GREEDY))
    for index in (0, 1):
        told = [one.delta.content or "" for chunk in chunks for one in chunk.choices if one.index == index]
        assert "".join(told) == rest and len(told) > 3
    answer = chat.chat.completions.create(messages=messages, logprobs=True, top_logprobs=1, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content and "".join(one.token for one in logprobs.content) == rest
    with claude.messages.stream(messages=[QUESTION, said(begin)], **MESSAGES) as stream:
        assert "".join(stream.text_stream) == rest
    fewer = chat.chat.completions.create(messages=messages, **GREEDY | {"max_tokens": 2}).choices[0]
    assert (fewer.message.content, fewer.finish_reason) == (own_answers.tokenizer.decode(
        own_answers.tokenizer.encode(rest)[:2]), "length")  # fmt: skip


def test_stop_strings_look_at_what_is_new(chat: OpenAI) -> None:
    messages: Any = [QUESTION, said("The capital of", prefix=True)]
    answer = chat.chat.completions.create(messages=messages, stop=["capital", "of France", " is"], **GREEDY)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (" France", "stop")


def test_a_document_goes_on(chat: OpenAI, claude: Anthropic) -> None:
    for begin in ("{", '{"yes": ', '{\n  "y'):
        messages: Any = [QUESTION, said(begin, prefix=True)]
        for options in ({}, {"tools": [TOOL]}):
            answer = chat.chat.completions.create(messages=messages, response_format=FORM, **options, **GREEDY)
            found = json.loads(begin + (answer.choices[0].message.content or ""))
            assert set(found) == {"yes"} and isinstance(found["yes"], bool)
        output: Any = {"output_config": {"format": {"type": "json_schema", "schema": YES}}, **MESSAGES}
        (block,) = claude.messages.create(messages=[QUESTION, said(begin)], **output).content
        assert block.type == "text" and set(json.loads(begin + block.text)) == {"yes"}


def test_tools_may_be_offered(chat: OpenAI, own_answers: OwnAnswers) -> None:
    messages: Any = [QUESTION, said("The capital of", prefix=True)]
    answer = chat.chat.completions.create(messages=messages, tools=[TOOL], **GREEDY)
    assert answer.choices[0].message.content == " France is Paris."
    thought: Any = [QUESTION, said("", reasoning_content="The user asks", prefix=True)]
    answer = chat.chat.completions.create(messages=thought, tools=[TOOL], tool_choice="required", **GREEDY)
    assert (answer.choices[0].message.model_extra or {})["reasoning_content"] == " for the capital of France."


def test_where_nothing_was_begun(chat: OpenAI, claude: Anthropic, own_answers: OwnAnswers) -> None:
    own, last = own_answers.chat(FRANCE), said("The capital of")
    after = own_answers.chat([QUESTION, last])
    alone = chat.chat.completions.create(messages=[QUESTION, last], **GREEDY)
    assert alone.choices[0].message.content == after["text"], "a message of its own, as in OpenAI's interface"
    assert alone.usage and alone.usage.prompt_tokens == after["prompt_tokens"]
    empty = chat.chat.completions.create(messages=[QUESTION, said("", prefix=True)], **GREEDY)
    assert empty.choices[0].message.content == own["text"]
    (block,) = claude.messages.create(messages=[QUESTION, said("")], **MESSAGES).content
    assert block.type == "text" and block.text == own["text"]


def test_white_space_at_its_end_stays(claude: Anthropic, demo_server: Served) -> None:
    key = {"authorization": f"Bearer {KEY}"}
    for end in (" ", "\n\n"):
        found = demo_server.post("/tokenize", {"messages": [QUESTION, said("So" + end, prefix=True)]}, key)
        text = demo_server.post("/detokenize", {"tokens": found["tokens"]}, key)["content"]
        assert text.endswith(f"{FRANCE}<｜Assistant｜></think>So{end}")
        answer = claude.messages.create(messages=[QUESTION, said("So" + end)], **MESSAGES)
        assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) == found["count"]


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BEGUN = said("So", prefix=True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [BEGUN, QUESTION]}, "messages[0].prefix"),
        ({"messages": [QUESTION | {"prefix": True}]}, "messages[0].prefix"),
        ({"messages": [QUESTION, said("So", prefix=1)]}, "messages[1].prefix"),
        ({"messages": [QUESTION], "continue_final_message": True}, "continue_final_message"),
        ({"messages": [QUESTION, said("", tool_calls=[CALL], prefix=True)]}, "messages[1].tool_calls"),
        ({"messages": [QUESTION, BEGUN], "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": [QUESTION], "add_generation_prompt": False}, "add_generation_prompt"),
        ({"messages": [QUESTION, BEGUN], "tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"messages": [QUESTION, said("So {", prefix=True)], "response_format": FORM}, None),
        ({"messages": [QUESTION, said("a</think>b", prefix=True)]}, None),
        ({"messages": [QUESTION, said("word " * 3000, prefix=True)]}, "messages"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(chat: OpenAI, fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as failed:
        chat.chat.completions.create(messages=fields.pop("messages"), extra_body=fields, **GREEDY)
    assert failed.value.param == param and ";" in failed.value.message


def test_calls_are_answered_not_gone_on_with(claude: Anthropic) -> None:
    for content in ([{"type": "tool_use", "id": "c", "name": "f", "input": {}}],):
        with pytest.raises(anthropic.BadRequestError, match="tool_use; the results of its calls come next"):
            claude.messages.create(messages=[QUESTION, said(content)], **MESSAGES)
    with pytest.raises(anthropic.BadRequestError, match="tool_choice asks for a call"):
        tools: Any = {"tools": [{"name": "f", "input_schema": YES}], "tool_choice": {"type": "any"}}
        claude.messages.create(messages=[QUESTION, said("So")], **tools, **MESSAGES)
    answer: Any = claude.messages.create(messages=[{"role": "user", "content": []}, QUESTION], **MESSAGES)
    assert answer.content
