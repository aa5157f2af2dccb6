"""Tools and formats of answers by OpenAI's and Anthropic's own Python clients. The bundled model knows no tools: what
it says in them is nonsense, but the server keeps it in form, and the clients read it."""

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import anthropic
import openai
import pytest
from anthropic import Anthropic
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.own_answers import OwnAnswers
from tests.served import Served

KEY = "a-key-of-tests"
FRANCE = "What is the capital of France?"
ASKED: Any = [{"role": "user", "content": FRANCE}]
ONE: Any = {"model": "demo", "temperature": 0, "parallel_tool_calls": False}  # a call, and no more
GREEDY: Any = {"model": "demo", "max_tokens": 120, "extra_body": {"temperature": 0}}


class Closed(BaseModel):
    """No further keys: what the bundled model writes has an end."""

    model_config = ConfigDict(extra="forbid")


class Weather(Closed):
    """Tells the weather."""

    city: Annotated[str, Field(max_length=12)]
    unit: Literal["celsius", "fahrenheit"]


class Add(Closed):
    a: Annotated[int, Field(ge=0, le=99)]
    b: Annotated[int, Field(ge=0, le=99)]


class Size(Closed):
    """Without bounds that Anthropic's client knows no place for in a schema."""

    large: bool
    kind: Literal["capital", "town"]


class City(Closed):
    name: Annotated[str, Field(max_length=10)]
    kind: Literal["capital", "town"]
    large: bool
    rivers: Annotated[list[Literal["Seine", "Tiber"]], Field(max_length=2)]


KINDS = {"Weather": Weather, "Add": Add}
TOOLS: Any = [openai.pydantic_function_tool(kind) for kind in KINDS.values()]
FLAT: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]  # as /v1/responses takes them
CUSTOM: Any = [{"name": name, "input_schema": kind.model_json_schema()} for name, kind in KINDS.items()]
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema()}}


@pytest.fixture(scope="module")
def client(demo_server: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{demo_server.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def other(demo_server: Served) -> Iterator[Anthropic]:
    with Anthropic(base_url=demo_server.url, api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


# Tools, OpenAI's


def test_a_call_is_required(client: OpenAI) -> None:
    answer = client.chat.completions.create(messages=ASKED, tools=TOOLS, tool_choice="required", **ONE)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.id
    KINDS[call.function.name].model_validate_json(call.function.arguments)


@pytest.mark.parametrize("name", KINDS)
def test_a_call_of_this_function_is_required(client: OpenAI, name: str) -> None:
    choice: Any = {"type": "function", "function": {"name": name}}
    answer = client.chat.completions.parse(messages=ASKED, tools=TOOLS, tool_choice=choice, **ONE)
    assert answer.choices[0].message.tool_calls
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == name and isinstance(call.function.parsed_arguments, KINDS[name])


def test_a_call_of_one_that_is_allowed(client: OpenAI) -> None:
    """Of each in turn, so that no other was the model's own choice; the prompt tells of all of them."""
    told = set[int]()
    for name in KINDS:
        allowed: Any = {"mode": "required", "tools": [{"type": "function", "function": {"name": name}}]}
        choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
        answer = client.chat.completions.create(messages=ASKED, tools=TOOLS, tool_choice=choice, **ONE)
        (call,) = answer.choices[0].message.tool_calls or ()
        assert call.type == "function" and call.function.name == name and answer.usage
        told.add(answer.usage.prompt_tokens)
    assert len(told) == 1


def test_no_call_may_be_made(client: OpenAI, own_answers: OwnAnswers) -> None:
    answer = client.chat.completions.create(messages=ASKED, tools=TOOLS, tool_choice="none", **ONE)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content == own_answers.chat(FRANCE)["text"]


def test_the_model_may_choose(client: OpenAI, own_answers: OwnAnswers) -> None:
    answer = client.chat.completions.create(messages=ASKED, tools=TOOLS, max_completion_tokens=60, **ONE)
    (choice,) = answer.choices
    assert choice.message.content or choice.message.tool_calls
    assert answer.usage and answer.usage.prompt_tokens > own_answers.chat(FRANCE)["prompt_tokens"], "tools are told"


def test_a_call_streams(client: OpenAI, demo_server: Served) -> None:
    options: Any = {"messages": ASKED, "tools": TOOLS, "tool_choice": "required", **ONE}
    whole = client.chat.completions.create(**options).choices[0].message.tool_calls
    assert whole
    deltas = [
        call
        for chunk in client.chat.completions.create(stream=True, **options)
        for choice in chunk.choices
        for call in choice.delta.tool_calls or []
    ]
    assert deltas[0].id and deltas[0].function and deltas[0].function.name == whole[0].function.name
    assert {delta.index for delta in deltas} == {0} and not any(delta.id for delta in deltas[1:])
    arguments = "".join((delta.function and delta.function.arguments) or "" for delta in deltas)
    assert arguments == whole[0].function.arguments

    async def helped() -> tuple[str, Any]:
        async with (
            AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key=KEY, max_retries=0) as client,
            client.chat.completions.stream(**options) as stream,
        ):
            events = [event async for event in stream]
            ended = [event for event in events if event.type == "tool_calls.function.arguments.done"]
            assert len(ended) == 1 and ended[0].arguments == arguments
            return arguments, (await stream.get_final_completion()).choices[0]

    _, choice = asyncio.run(helped())
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.arguments == arguments
    assert isinstance(choice.message.tool_calls[0].function.parsed_arguments, tuple(KINDS.values()))


def test_several_calls_and_what_came_of_them(client: OpenAI) -> None:
    calls: Any = [
        {"id": f"call_{n}", "type": "function", "function": {"name": "Add", "arguments": f'{{"a": {n}, "b": 1}}'}}
        for n in range(2)
    ]
    turns: Any = [*ASKED, {"role": "assistant", "content": None, "tool_calls": calls}]
    results: Any = [{"role": "tool", "tool_call_id": f"call_{n}", "content": str(n + 1)} for n in range(2)]
    options: Any = {"model": "demo", "temperature": 0, "tools": TOOLS, "max_completion_tokens": 20}
    asked = client.chat.completions.create(messages=ASKED, **options)
    answer = client.chat.completions.create(messages=[*turns, *results], **options)
    assert asked.usage and answer.usage and answer.usage.prompt_tokens > asked.usage.prompt_tokens + 20
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_parallel_calls(client: OpenAI) -> None:
    """At such a temperature the model does not care whether it goes on with another call."""
    options: Any = {
        "model": "demo", "messages": ASKED, "tools": TOOLS[1:], "tool_choice": "required", "max_completion_tokens": 500,
        "temperature": 100, "top_p": 1, "seed": 0, "n": 6,
    }  # fmt: skip
    made = [choice.message.tool_calls or [] for choice in client.chat.completions.create(**options).choices]
    assert min(map(len, made)) == 1 and max(map(len, made)) > 1
    for calls in made:
        assert len({call.id for call in calls}) == len(calls)
        for call in calls:
            assert call.type == "function"
            Add.model_validate_json(call.function.arguments)
    streamed: list[list[str]] = [[] for _ in made]
    for chunk in client.chat.completions.create(stream=True, **options):
        for choice in chunk.choices:
            for delta in choice.delta.tool_calls or []:
                if delta.index == len(streamed[choice.index]):
                    streamed[choice.index].append("")
                assert delta.function and delta.index == len(streamed[choice.index]) - 1, "one after the other"
                streamed[choice.index][-1] += delta.function.arguments or ""
    assert streamed == [[call.function.arguments for call in calls if call.type == "function"] for calls in made]


def test_tools_of_responses(client: OpenAI) -> None:
    options: Any = {"tools": FLAT, "tool_choice": "required", **ONE}
    answer = client.responses.create(input=FRANCE, **options)
    (call,) = answer.output
    assert call.type == "function_call" and call.call_id and answer.status == "completed"
    KINDS[call.name].model_validate_json(call.arguments)
    with client.responses.stream(input=FRANCE, **options) as stream:
        events = list(stream)
        (same,) = stream.get_final_response().output
    assert same.type == "function_call" and (same.name, same.arguments) == (call.name, call.arguments)
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(deltas) == done.arguments == call.arguments
    named: Any = options | {"tool_choice": {"type": "function", "name": "Add"}}
    (add,) = client.responses.create(input=FRANCE, **named).output
    assert add.type == "function_call" and add.name == "Add"
    allowed: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "Add"}]}
    of_some = client.responses.create(input=FRANCE, **options | {"tool_choice": allowed})
    assert of_some.output[0].type == "function_call" and of_some.output[0].name == "Add"
    assert of_some.to_dict()["tool_choice"] == allowed
    turns: Any = [*ASKED, call.model_dump(exclude_none=True)]
    turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    after = client.responses.create(input=turns, tools=FLAT, max_output_tokens=20, model="demo", temperature=0)
    assert after.usage and answer.usage and after.usage.input_tokens > answer.usage.input_tokens + 10


# Formats of answers, OpenAI's


def test_an_answer_of_a_schema(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="demo", messages=ASKED, temperature=0, response_format=City, max_completion_tokens=100
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, City)
    by_hand = client.chat.completions.create(
        model="demo", messages=ASKED, temperature=2, seed=1, response_format=FORMAT
    )
    City.model_validate_json(by_hand.choices[0].message.content or "")


def test_an_answer_of_a_schema_streams(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=ASKED, temperature=0, response_format=City, max_completion_tokens=100
    ) as stream:
        (done,) = [event for event in stream if event.type == "content.done"]
    assert isinstance(done.parsed, City)
    response = client.responses.parse(model="demo", input=FRANCE, temperature=0, text_format=City)
    assert isinstance(response.output_parsed, City)
    with client.responses.stream(model="demo", input=FRANCE, temperature=0, text_format=City) as events:
        assert events.get_final_response().output_parsed == response.output_parsed


def test_reasoning_before_an_answer_of_a_schema(client: OpenAI, own_answers: OwnAnswers) -> None:
    answer = client.chat.completions.parse(
        model="demo", messages=ASKED, temperature=0, response_format=City, reasoning_effort="high"
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, City) and message.model_extra
    assert message.model_extra["reasoning_content"] == own_answers.chat(FRANCE, thinking=True)["thinking"]


def test_an_answer_that_is_an_object(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=ASKED, temperature=0, response_format={"type": "json_object"}, max_completion_tokens=100
    )
    text = answer.choices[0].message.content or ""
    assert text.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    plain = client.chat.completions.create(
        model="demo", messages=ASKED, temperature=0, response_format={"type": "text"}, max_completion_tokens=10
    )
    assert "Paris" in (plain.choices[0].message.content or "")


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "https://example.org/schema.json"}, {"type": "nothing"}, {"type": "string", "pattern": "(?=x)y"}],
    ids=str,
)
def test_a_schema_that_cannot_be_enforced_is_refused(client: OpenAI, schema: dict[str, Any]) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="demo", messages=ASKED, response_format=form)


def test_a_budget_of_reasoning(client: OpenAI, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE, thinking=True)
    answer = client.chat.completions.create(
        model="demo", messages=ASKED, temperature=0, extra_body={"thinking": {"type": "enabled", "budget_tokens": 3}}
    )
    message = answer.choices[0].message
    thought = (message.model_extra or {}).get("reasoning_content", "")
    assert thought and own["thinking"].startswith(thought.rstrip()) and len(thought) < len(own["thinking"])
    assert message.content and answer.choices[0].finish_reason == "stop"


# Anthropic's


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "Add"}], ids=str)
def test_tool_use(other: Anthropic, choice: dict[str, Any]) -> None:
    one: Any = {"tool_choice": choice | {"disable_parallel_tool_use": True}, "tools": CUSTOM, **GREEDY}
    answer = other.messages.create(messages=ASKED, **one)
    (used,) = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use" and used.id and used.name == choice.get("name", used.name)
    KINDS[used.name].model_validate(used.input)
    with other.messages.stream(messages=ASKED, **one) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        streamed = stream.get_final_message()
    assert json.loads("".join(parts)) == used.input
    assert [block.input for block in streamed.content if block.type == "tool_use"] == [used.input]
    result = {
        "type": "tool_result",
        "tool_use_id": used.id,
        "content": [{"type": "text", "text": "3"}],
        "is_error": True,
    }
    turns: Any = [*ASKED, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    after = other.messages.create(messages=turns, tools=CUSTOM, **GREEDY | {"max_tokens": 10})
    assert after.stop_reason in ("end_turn", "max_tokens", "tool_use")
    count = other.messages.count_tokens(model="demo", messages=turns, tools=CUSTOM)
    assert count.input_tokens == after.usage.input_tokens + (after.usage.cache_read_input_tokens or 0)


def test_no_tool_use(other: Anthropic, own_answers: OwnAnswers) -> None:
    answer = other.messages.create(messages=ASKED, tools=CUSTOM, tool_choice={"type": "none"}, **GREEDY)
    assert [block.type for block in answer.content] == ["text"]
    assert answer.content[0].type == "text" and answer.content[0].text == own_answers.chat(FRANCE)["text"]


def test_an_output_of_a_schema(other: Anthropic) -> None:
    answer = other.messages.parse(messages=ASKED, output_format=Size, **GREEDY)
    assert isinstance(answer.parsed_output, Size) and answer.stop_reason == "end_turn"
    with other.messages.stream(messages=ASKED, output_format=Size, **GREEDY) as stream:
        assert stream.get_final_message().parsed_output == answer.parsed_output
    form: Any = {"format": {"type": "json_schema", "schema": {"$ref": "https://example.org/schema.json"}}}
    with pytest.raises(anthropic.BadRequestError):
        other.messages.create(messages=ASKED, output_config=form, **GREEDY)
