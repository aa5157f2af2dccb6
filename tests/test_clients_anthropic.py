"""Anthropic's own Python client against a running server: every endpoint and option but tools and formats of answers,
which tests/test_clients_tools.py has. What the model would say by itself is what the server has to say."""

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from tests.own_answers import OwnAnswers
from tests.served import Served

KEY = "a-key-of-tests"
FRANCE = "What is the capital of France?"
ITALY = "What is the capital of Italy?"
IMAGE: Any = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}
GREEDY: Any = {"model": "demo", "max_tokens": 40, "extra_body": {"temperature": 0}}  # the client has no name for it

ENDLESS: Any = GREEDY | {"max_tokens": 900, "extra_body": {"temperature": 50, "top_p": 1}}  # what is said has no end


def asked(*texts: str) -> Any:
    """A conversation: the user's turns and the assistant's in turn."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


@pytest.fixture(scope="module")
def client(demo_server: Served) -> Iterator[Anthropic]:
    with Anthropic(base_url=demo_server.url, api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def asynchronous(server: Served) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=server.url, auth_token=KEY, max_retries=0, timeout=120)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def thought_of(message: Any) -> str:
    return "".join(block.thinking for block in message.content if block.type == "thinking")


def plain(content: Any) -> list[dict[str, Any]]:
    return [block.model_dump(exclude={"parsed_output"}) for block in content]


def test_models(client: Anthropic) -> None:
    (one,) = client.models.list()
    assert (one.id, one.type, one.lifecycle) == ("demo", "model", "active")
    assert one.display_name and one.created_at.year >= 2025
    assert client.models.retrieve("demo") == one
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-9")


def test_a_greedy_answer_is_the_models_own(client: Anthropic, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE)
    answer = client.messages.create(messages=asked(FRANCE), **GREEDY)
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "demo")
    (block,) = answer.content
    assert block.type == "text" and block.text == own["text"]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.usage.output_tokens == own["generated_tokens"]
    read = answer.usage.cache_read_input_tokens
    assert read is not None and answer.usage.input_tokens + read == own["prompt_tokens"]


def test_a_conversation_in_every_form_of_message(client: Anthropic, own_answers: OwnAnswers) -> None:
    own = own_answers.chat([{"role": "system", "content": "Be brief."}, *asked(FRANCE, "Paris.", ITALY)])
    blocks: Any = [
        {"role": "user", "content": [{"type": "text", "text": FRANCE, "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Paris."}]},
        {"role": "user", "content": [{"type": "text", "text": text} for text in ("What is the capital", " of Italy?")]},
    ]
    system: Any = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    for messages, rules in ((asked(FRANCE, "Paris.", ITALY), "Be brief."), (blocks, system)):
        answer = client.messages.create(messages=messages, system=rules, metadata={"user_id": "somebody"}, **GREEDY)
        assert text_of(answer) == own["text"]
        count = client.messages.count_tokens(model="demo", messages=messages, system=rules)
        assert count.input_tokens == own["prompt_tokens"]


def test_a_raw_stream(client: Anthropic, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE)
    with client.messages.create(messages=asked(FRANCE), stream=True, **GREEDY) as stream:
        events = [event for event in stream if event.type != "ping"]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"} and len(kinds[2:-3]) >= own["generated_tokens"] - 1
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    assert "".join(delta.text for delta in deltas if delta.type == "text_delta") == own["text"]
    (end,) = [event for event in events if event.type == "message_delta"]
    assert end.delta.stop_reason == "end_turn" and end.usage.output_tokens == own["generated_tokens"]


def test_the_clients_own_stream_helper(client: Anthropic, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE)
    with client.messages.stream(messages=asked(FRANCE), **GREEDY) as stream:
        assert "".join(stream.text_stream) == own["text"]
        answer = stream.get_final_message()
    whole = client.messages.create(messages=asked(FRANCE), **GREEDY)
    assert plain(answer.content) == plain(whole.content) and answer.stop_reason == whole.stop_reason
    assert answer.usage.output_tokens == own["generated_tokens"]
    with client.messages.stream(messages=asked(FRANCE), **GREEDY) as stream:
        assert stream.get_final_text() == own["text"]


def test_several_clients_at_once_hear_what_each_would_alone(demo_server: Served, own_answers: OwnAnswers) -> None:
    questions = [FRANCE, ITALY, "What is 2 + 3?", "Hello"]

    async def one(client: AsyncAnthropic, question: str, helper: bool) -> str:
        if not helper:
            return text_of(await client.messages.create(messages=asked(question), **GREEDY))
        async with client.messages.stream(messages=asked(question), **GREEDY) as stream:
            return "".join([text async for text in stream.text_stream])

    async def all_of_them() -> list[str]:
        async with asynchronous(demo_server) as client:
            assert [one.id async for one in client.models.list()] == ["demo"]
            return await asyncio.gather(*(one(client, text, at % 2 == 0) for at, text in enumerate(questions)))

    assert asyncio.run(all_of_them()) == [own_answers.chat(question)["text"] for question in questions]


def test_thinking(client: Anthropic, own_answers: OwnAnswers) -> None:
    own, without = own_answers.chat(FRANCE, thinking=True), own_answers.chat(FRANCE, thinking=False)
    on: Any = {"thinking": {"type": "enabled", "budget_tokens": 39}}  # more than it needs
    answer = client.messages.create(messages=asked(FRANCE), **on, **GREEDY)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert (thought_of(answer), text_of(answer)) == (own["thinking"], own["text"])
    assert answer.usage.output_tokens_details and answer.usage.output_tokens_details.thinking_tokens
    with client.messages.stream(messages=asked(FRANCE), **on, **GREEDY) as stream:
        thought = "".join(event.thinking for event in stream if event.type == "thinking")
        streamed = stream.get_final_message()
    assert thought == own["thinking"] and plain(streamed.content) == plain(answer.content)
    off = client.messages.create(messages=asked(FRANCE), thinking={"type": "disabled"}, **GREEDY)
    assert [block.type for block in off.content] == ["text"] and text_of(off) == without["text"]
    turns: Any = [*asked(FRANCE), {"role": "assistant", "content": answer.content}, *asked(ITALY)]
    assert text_of(client.messages.create(messages=turns, **GREEDY)), "what it thought may be sent back"
    hidden: Any = {"thinking": {"type": "enabled", "budget_tokens": 39, "display": "omitted"}}
    quiet = client.messages.create(messages=asked(FRANCE), **hidden, **GREEDY)
    assert (thought_of(quiet), text_of(quiet)) == ("", own["text"])


def test_a_budget_of_thinking(client: Anthropic, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE, thinking=True)
    answer = client.messages.create(
        messages=asked(FRANCE), thinking={"type": "enabled", "budget_tokens": 3}, **GREEDY
    )  # fmt: skip
    thought = thought_of(answer)
    assert thought and own["thinking"].startswith(thought.rstrip()) and len(thought) < len(own["thinking"])
    assert text_of(answer) and answer.stop_reason == "end_turn"
    with pytest.raises(anthropic.BadRequestError, match="budget_tokens"):
        client.messages.create(messages=asked(FRANCE), thinking={"type": "enabled", "budget_tokens": 50}, **GREEDY)


def test_so_many_tokens_at_most(client: Anthropic, own_answers: OwnAnswers) -> None:
    answer = client.messages.create(messages=asked(FRANCE), **GREEDY | {"max_tokens": 3})
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 3
    assert text_of(answer) == own_answers.chat(FRANCE, max_tokens=3)["text"]
    generous = client.messages.create(messages=asked(FRANCE), **GREEDY | {"max_tokens": 100_000})
    assert text_of(generous) == own_answers.chat(FRANCE)["text"], "clients ask for more than there is room for"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences(client: Anthropic, own_answers: OwnAnswers, stream: bool) -> None:
    own = own_answers.chat(FRANCE, stop=["zebra", " is"])
    options: Any = {"messages": asked(FRANCE), "stop_sequences": ["zebra", " is"], **GREEDY}
    if stream:
        with client.messages.stream(**options) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**options)
    assert text_of(answer) == own["text"] == "The capital of France"
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " is")


def test_what_was_read_before_is_not_read_again(client: Anthropic) -> None:
    first = asked("Colours: " + " ".join(f"red {n} blue" for n in range(60)))
    answer = client.messages.create(messages=first, **GREEDY | {"max_tokens": 8})
    longer = client.messages.create(messages=[*first, *asked("", text_of(answer), "Go on")[1:]], **GREEDY)
    read = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    assert read > 200 and longer.usage.input_tokens > 0
    assert read // 64 * 64 <= (longer.usage.cache_read_input_tokens or 0)


def test_a_prompt_beyond_the_context(client: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as failed:
        client.messages.create(messages=asked("word " * 3000), **GREEDY)
    assert failed.value.type == "invalid_request_error"
    assert "1,024" in failed.value.message and "3,0" in failed.value.message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"top_p": 2}}, "top_p"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "type"),
        ({"container": "c"}, "container"),
        ({"stop_sequences": ["x" * 2000]}, "stop_sequences"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_refused_is_named(client: Anthropic, options: dict[str, Any], named: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as failed:
        client.messages.create(**{"messages": asked("Hi"), **GREEDY, **options})
    assert failed.value.type == "invalid_request_error" and named in failed.value.message


def test_what_nobody_knows_is_reported(client: Anthropic) -> None:
    raw = client.messages.with_raw_response.create(
        messages=asked("Hello"), **GREEDY | {"extra_body": {"temperature": 0, "tempreature": 1}}
    )
    assert raw.headers["x-hetero-unknown-fields"] == "tempreature"
    assert text_of(raw.parse())


def test_requests_have_an_id(client: Anthropic) -> None:
    answer = client.messages.create(messages=asked("Hello"), **GREEDY)
    with pytest.raises(anthropic.NotFoundError) as failed:
        client.messages.create(messages=asked("Hello"), **GREEDY | {"model": "claude-9"})
    with client.messages.stream(messages=asked("Hello"), **GREEDY) as stream:
        ids = {answer._request_id, failed.value.request_id, stream.request_id}
    assert len(ids) == 3 and all(id and id.startswith("req_") for id in ids)
    assert failed.value.type == "not_found_error" and "demo" in failed.value.message


def test_a_wrong_key(client: Anthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError) as failed:
        client.with_options(api_key="another-key").messages.create(messages=asked("Hi"), **GREEDY)
    assert failed.value.type == "authentication_error"
    with pytest.raises(anthropic.AuthenticationError) as failed:
        client.with_options(api_key="another-key").models.list()
    assert failed.value.body["type"] == "error" and failed.value.request_id  # type: ignore[index]  # the client calls it object


def test_a_client_that_loses_patience(client: Anthropic, own_answers: OwnAnswers) -> None:
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(timeout=0.001).messages.create(messages=asked(FRANCE), **GREEDY)
    assert text_of(client.messages.create(messages=asked(FRANCE), **GREEDY)) == own_answers.chat(FRANCE)["text"]


def test_a_stream_that_is_closed_ends_its_sequence(client: Anthropic, demo_server: Served) -> None:
    headers = {"x-request-id": "left"}
    with client.messages.stream(messages=asked("Go on"), extra_headers=headers, **ENDLESS) as stream:
        next(iter(stream))
    assert "ended=disconnected" in demo_server.logged("id=left ")
    assert text_of(client.messages.create(messages=asked(FRANCE), **GREEDY))


def test_too_many_at_once(client: Anthropic, own_answers: OwnAnswers) -> None:
    streams = []
    try:
        with pytest.raises(anthropic.RateLimitError) as failed:
            for _ in range(60):
                streams.append(client.messages.create(messages=asked("Go on"), stream=True, **ENDLESS))
        assert failed.value.type == "rate_limit_error"
        assert 1 <= int(failed.value.response.headers["retry-after"]) <= 60
    finally:
        for stream in streams:
            stream.close()
    answer = client.with_options(max_retries=3).messages.create(messages=asked(FRANCE), **GREEDY)
    assert text_of(answer) == own_answers.chat(FRANCE)["text"]
