"""OpenAI's own Python client against a running server: every endpoint and option but tools and formats of answers,
which tests/test_clients_tools.py has. What the model would say by itself is what the server has to say."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk

from tests.own_answers import OwnAnswers
from tests.served import Served

KEY = "a-key-of-tests"
FRANCE = "What is the capital of France?"
ITALY = "What is the capital of Italy?"
ONCE = "Once upon a time"  # goes on for ever, at temperature 0
MODEL: Any = "demo"


def asked(*texts: str) -> Any:
    """A conversation: the user's turns and the assistant's in turn."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


@pytest.fixture(scope="module")
def client(demo_server: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{demo_server.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def asynchronous(server: Served) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120)


def joined(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(one.delta.content or "" for chunk in chunks for one in chunk.choices if one.index == index)


# Models


def test_models(client: OpenAI) -> None:
    (one,) = client.models.list()
    assert one.id == "demo" and one.object == "model" and one.owned_by == "hetero" and one.created > 0
    assert client.models.retrieve("demo") == one
    assert one.model_extra and one.model_extra["context_length"] == 1024
    with pytest.raises(openai.NotFoundError) as failed:
        client.models.retrieve("gpt-5")
    assert failed.value.code == "model_not_found" and "demo" in failed.value.message


# Chat completions


def test_a_greedy_answer_is_the_models_own(client: OpenAI, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE)
    answer = client.chat.completions.create(model=MODEL, messages=asked(FRANCE), temperature=0)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", own["text"], "stop")
    assert choice.message.tool_calls is None and choice.logprobs is None and choice.message.refusal is None
    assert answer.usage and answer.usage.prompt_tokens == own["prompt_tokens"]
    assert answer.usage.completion_tokens == own["generated_tokens"]
    assert answer.usage.total_tokens == own["prompt_tokens"] + own["generated_tokens"]
    assert answer.model == "demo" and answer.object == "chat.completion" and abs(answer.created - time.time()) < 60
    again = client.chat.completions.create(model=MODEL, messages=asked(FRANCE), temperature=0)
    assert again.choices == answer.choices and again.id != answer.id


def test_a_conversation_in_every_form_of_message(client: OpenAI, own_answers: OwnAnswers) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *asked(FRANCE, "Paris.", ITALY)]
    own = own_answers.chat(messages)
    parts: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": [{"type": "text", "text": FRANCE}], "name": "somebody"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": ITALY},
    ]
    for form in (messages, parts):
        answer = client.chat.completions.create(model=MODEL, messages=form, temperature=0)
        assert answer.choices[0].message.content == own["text"]
        assert answer.usage and answer.usage.prompt_tokens == own["prompt_tokens"]


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream(client: OpenAI, own_answers: OwnAnswers, usage: bool) -> None:
    own = own_answers.chat(FRANCE)
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=asked(FRANCE), temperature=0, stream=True, **options)
    )
    assert joined(chunks) == own["text"]
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > own["generated_tokens"], "token by token"
    reasons = [one.finish_reason for chunk in chunks for one in chunk.choices]
    assert reasons[-1] == "stop" and not any(reasons[:-1])
    told = [chunk.usage for chunk in chunks if chunk.usage]
    if usage:
        assert not chunks[-1].choices and [chunks[-1].usage] == told
        assert told[0].completion_tokens == own["generated_tokens"] and told[0].prompt_tokens == own["prompt_tokens"]
    else:
        assert not told


def test_the_clients_own_stream_helper(client: OpenAI, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE)
    with client.chat.completions.stream(
        model=MODEL, messages=asked(FRANCE), temperature=0, logprobs=True, top_logprobs=2,
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        events = list(stream)
        answer = stream.get_final_completion()
    assert "".join(event.delta for event in events if event.type == "content.delta") == own["text"]
    (done,) = [event for event in events if event.type == "content.done"]
    assert done.content == own["text"]
    assert answer.choices[0].message.content == own["text"] and answer.choices[0].finish_reason == "stop"
    assert answer.usage and answer.usage.completion_tokens == own["generated_tokens"]
    whole = client.chat.completions.create(
        model=MODEL, messages=asked(FRANCE), temperature=0, logprobs=True, top_logprobs=2
    )
    assert texts_of(answer.choices[0].logprobs) == texts_of(whole.choices[0].logprobs)


def texts_of(logprobs: Any) -> list[str]:
    return [token.token for token in logprobs.content]


def test_logprobs(client: OpenAI, own_answers: OwnAnswers) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=asked(FRANCE), temperature=0, logprobs=True, top_logprobs=5
    )
    (choice,) = answer.choices
    assert choice.logprobs and choice.logprobs.content
    assert "".join(texts_of(choice.logprobs)) == choice.message.content
    for token in choice.logprobs.content:
        assert token.bytes == list(token.token.encode())
        assert len(token.top_logprobs) == 5 and token.logprob <= 0
        values = [other.logprob for other in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, values[0]), "greedy"
    logits = own_answers.engine.logits(own_answers.ids(FRANCE))[-1].astype(float)
    best = -np.log(np.exp(logits - logits.max()).sum())
    assert choice.logprobs.content[0].logprob == pytest.approx(best, abs=1e-3)
    without = client.chat.completions.create(model=MODEL, messages=asked(FRANCE), temperature=0, logprobs=True)
    assert without.choices[0].logprobs and without.choices[0].logprobs.content
    assert all(token.top_logprobs == [] for token in without.choices[0].logprobs.content)


def test_several_clients_at_once_hear_what_each_would_alone(demo_server: Served, own_answers: OwnAnswers) -> None:
    questions = [FRANCE, ITALY, "What is 2 + 3?", "Hello"]

    async def one(client: AsyncOpenAI, question: str, helper: bool) -> str:
        if not helper:
            answer = await client.chat.completions.create(model=MODEL, messages=asked(question), temperature=0)
            return answer.choices[0].message.content or ""
        async with client.chat.completions.stream(model=MODEL, messages=asked(question), temperature=0) as stream:
            return "".join([event.delta async for event in stream if event.type == "content.delta"])

    async def all_of_them() -> list[str]:
        async with asynchronous(demo_server) as client:
            assert [one.id async for one in client.models.list()] == ["demo"]
            return await asyncio.gather(*(one(client, text, at % 2 == 0) for at, text in enumerate(questions)))

    assert asyncio.run(all_of_them()) == [own_answers.chat(question)["text"] for question in questions]


def test_the_same_seed_gives_the_same_text(client: OpenAI) -> None:
    def text(seed: int) -> str:
        answer = client.completions.create(model=MODEL, prompt=ONCE, temperature=1.5, seed=seed, max_tokens=12)
        return answer.choices[0].text

    texts = [text(seed) for seed in (7, 7, 8, 9)]
    assert texts[0] == texts[1] and len(set(texts)) == 3


def test_several_choices(client: OpenAI) -> None:
    options: Any = {
        "model": MODEL,
        "messages": asked("Hello"),
        "temperature": 5.0,
        "seed": 3,
        "max_completion_tokens": 9,
    }
    alone = client.chat.completions.create(**options)
    three = client.chat.completions.create(n=3, **options)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert texts[0] == alone.choices[0].message.content and len(set(texts)) == 3
    assert three.usage and alone.usage and three.usage.prompt_tokens == alone.usage.prompt_tokens
    streamed = list(client.chat.completions.create(n=3, stream=True, **options))
    assert [joined(streamed, index) for index in range(3)] == texts


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 1.5},
        {"frequency_penalty": -2.0, "presence_penalty": -1.0},
        {"repetition_penalty": 1.5, "penalty_window": 8},
        {"stop": [" sight", "zebra"]},
        {"stop": "other,"},
    ],
    ids=str,
)
def test_options_of_sampling_are_the_engines(client: OpenAI, own_answers: OwnAnswers, options: dict[str, Any]) -> None:
    stop = [options["stop"]] if isinstance(options.get("stop"), str) else options.get("stop", [])
    own = own_answers.text(ONCE, max_tokens=24, **options | {"stop": stop})
    answer = client.completions.create(model=MODEL, prompt=ONCE, temperature=0, max_tokens=24, extra_body=options)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (own["text"], own["finish_reason"])
    assert choice.text != own_answers.text(ONCE, max_tokens=24)["text"]


def test_logit_bias_by_the_ids_that_tokenize_gives(client: OpenAI, demo_server: Served) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    ids = demo_server.post("/tokenize", {"content": "The", "add_special": False}, headers)["tokens"]
    assert len(ids) == 1 and demo_server.post("/detokenize", {"tokens": ids}, headers) == {"content": "The"}
    options: Any = {"model": MODEL, "messages": asked(FRANCE), "temperature": 0, "max_completion_tokens": 4}
    plain = client.chat.completions.create(**options).choices[0].message.content
    without = client.chat.completions.create(**options, logit_bias={str(ids[0]): -100}).choices[0].message.content
    forced = client.chat.completions.create(**options, logit_bias={str(ids[0]): 100}).choices[0].message.content
    assert plain and plain.startswith("The ") and without and not without.startswith("The")
    assert forced == "TheTheTheThe"


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_tokens"])
def test_so_many_tokens_at_most(client: OpenAI, own_answers: OwnAnswers, name: str) -> None:
    options: Any = {name: 3}
    answer = client.chat.completions.create(model=MODEL, messages=asked(FRANCE), temperature=0, **options)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == own_answers.chat(FRANCE, max_tokens=3)["text"]
    assert answer.usage and answer.usage.completion_tokens == 3


def test_reasoning(client: OpenAI, own_answers: OwnAnswers) -> None:
    own, plain = own_answers.chat(FRANCE, thinking=True), own_answers.chat(FRANCE, thinking=False)
    assert own["thinking"] and not plain["thinking"]
    options: Any = {"model": MODEL, "messages": asked(FRANCE), "temperature": 0}
    answer = client.chat.completions.create(reasoning_effort="high", **options)
    message = answer.choices[0].message
    assert message.content == own["text"] and message.model_extra
    assert message.model_extra["reasoning_content"] == own["thinking"]
    assert answer.usage and answer.usage.completion_tokens_details
    assert 0 < (answer.usage.completion_tokens_details.reasoning_tokens or 0) < answer.usage.completion_tokens
    for extra in ({"thinking": {"type": "enabled"}}, {"chat_template_kwargs": {"thinking": True}}):
        chunks = list(client.chat.completions.create(stream=True, extra_body=extra, **options))
        deltas = [one.delta for chunk in chunks for one in chunk.choices]
        thought = "".join((delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas)
        assert (thought, joined(chunks)) == (own["thinking"], own["text"])
    none = client.chat.completions.create(reasoning_effort="none", **options)
    assert none.choices[0].message.content == plain["text"]
    assert "reasoning_content" not in (none.choices[0].message.model_extra or {})
    assert none.usage and none.usage.completion_tokens_details
    assert none.usage.completion_tokens_details.reasoning_tokens == 0


def test_what_was_read_before_is_not_read_again(client: OpenAI) -> None:
    first = asked("Numbers: " + " ".join(map(str, range(120))))
    options: Any = {"model": MODEL, "temperature": 0, "max_completion_tokens": 8}
    answer = client.chat.completions.create(messages=first, **options)
    reply = {"role": "assistant", "content": answer.choices[0].message.content}
    longer = client.chat.completions.create(messages=[*first, reply, *asked("Go on")], **options)
    assert answer.usage and longer.usage and answer.usage.prompt_tokens > 200
    assert longer.usage.prompt_tokens_details and longer.usage.prompt_tokens_details.cached_tokens
    whole_pages = answer.usage.prompt_tokens // 64 * 64
    assert whole_pages <= longer.usage.prompt_tokens_details.cached_tokens < longer.usage.prompt_tokens


def test_progress_for_clients_that_ask(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=asked("Letters: " + "a b c d e f g " * 40), max_completion_tokens=1, stream=True,
            extra_body={"return_progress": True},
        )
    )  # fmt: skip
    told = [
        chunk.model_extra["prompt_progress"] for chunk in chunks if (chunk.model_extra or {}).get("prompt_progress")
    ]
    assert told and all(one["total"] == told[0]["total"] > 200 for one in told)
    for name in ("processed", "time_ms"):
        assert [one[name] for one in told] == sorted(one[name] for one in told)
    assert told[0]["time_ms"] == 0 < told[-1]["time_ms"]


# Completions


def test_completions(client: OpenAI, own_answers: OwnAnswers) -> None:
    own = own_answers.text(ONCE, max_tokens=8)
    answer = client.completions.create(model=MODEL, prompt=ONCE, temperature=0, max_tokens=8, logprobs=2)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (own["text"], "length")
    assert answer.usage and answer.usage.prompt_tokens == own["prompt_tokens"]
    assert answer.usage.completion_tokens == 8
    shown = choice.logprobs
    assert shown and shown.tokens and shown.top_logprobs and shown.token_logprobs and shown.text_offset
    assert "".join(shown.tokens) == choice.text and shown.text_offset[0] == 0
    assert all(len(top) == 2 and token in top for token, top in zip(shown.tokens, shown.top_logprobs, strict=True))
    default = client.completions.create(model=MODEL, prompt=ONCE, temperature=0)
    assert default.usage and default.usage.completion_tokens == 16, "OpenAI's default"


def test_completions_of_several_prompts(client: OpenAI, own_answers: OwnAnswers) -> None:
    prompts = [ONCE, "The capital of France is"]
    own = [own_answers.text(prompt, max_tokens=5)["text"] for prompt in prompts]
    answer = client.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=5, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [own[0], own[0], own[1], own[1]]
    echoed = client.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=5, echo=True)
    assert [choice.text for choice in echoed.choices] == [prompts[0] + own[0], prompts[1] + own[1]]
    ids = own_answers.text_ids(ONCE)
    by_ids = client.completions.create(model=MODEL, prompt=[ids], temperature=0, max_tokens=5)
    assert by_ids.choices[0].text == own[0]


def test_a_stream_of_completions(client: OpenAI, demo_server: Served, own_answers: OwnAnswers) -> None:
    own = own_answers.text(ONCE, max_tokens=8)["text"]
    chunks = list(
        client.completions.create(
            model=MODEL, prompt=ONCE, temperature=0, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(one.text for chunk in chunks for one in chunk.choices) == own
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 8

    async def text() -> str:
        async with asynchronous(demo_server) as client:
            stream = await client.completions.create(model=MODEL, prompt=ONCE, temperature=0, max_tokens=8, stream=True)
            return "".join([one.text async for chunk in stream for one in chunk.choices])

    assert asyncio.run(text()) == own


# Responses


def test_responses(client: OpenAI, own_answers: OwnAnswers) -> None:
    own = own_answers.chat([{"role": "system", "content": "Be brief."}, *asked(FRANCE)])
    answer = client.responses.create(
        model=MODEL, input=FRANCE, instructions="Be brief.", temperature=0, metadata={"a": "b"}, top_logprobs=2,
        include=["message.output_text.logprobs"],
    )  # fmt: skip
    assert (answer.output_text, answer.status, answer.error) == (own["text"], "completed", None)
    assert answer.metadata == {"a": "b"} and answer.instructions == "Be brief." and answer.temperature == 0
    assert answer.usage and answer.usage.input_tokens == own["prompt_tokens"]
    assert answer.usage.output_tokens == own["generated_tokens"]
    (item,) = answer.output
    assert item.type == "message" and item.role == "assistant" and item.content[0].type == "output_text"
    assert item.content[0].logprobs and "".join(one.token for one in item.content[0].logprobs) == own["text"]
    assert all(len(one.top_logprobs) == 2 for one in item.content[0].logprobs)


def test_a_conversation_of_items(client: OpenAI, own_answers: OwnAnswers) -> None:
    first = client.responses.create(model=MODEL, input=FRANCE, temperature=0)
    turns: Any = [
        {"role": "user", "content": FRANCE},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"role": "user", "content": [{"type": "input_text", "text": ITALY}]},
    ]
    answer = client.responses.create(model=MODEL, input=turns, temperature=0)
    assert answer.output_text == own_answers.chat(asked(FRANCE, first.output_text, ITALY))["text"]


def test_input_tokens_of_responses(client: OpenAI) -> None:
    function: Any = {"name": "look_up", "parameters": {"type": "object"}, "type": "function", "strict": False}
    said: dict[str, Any] = {"input": FRANCE, "instructions": "Be brief.", "tools": [function]}
    count = client.responses.input_tokens.count(model=MODEL, **said)
    assert count.object == "response.input_tokens"
    answer = client.responses.create(model=MODEL, max_output_tokens=16, **said)
    assert answer.usage and count.input_tokens == answer.usage.input_tokens
    assert client.responses.input_tokens.count(model=MODEL, input=FRANCE).input_tokens < count.input_tokens
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.input_tokens.count(model=MODEL, previous_response_id="resp_1", input=FRANCE)


def test_a_stream_of_responses(client: OpenAI, demo_server: Served, own_answers: OwnAnswers) -> None:
    own = own_answers.chat(FRANCE, thinking=True)
    options: Any = {"model": MODEL, "input": FRANCE, "temperature": 0, "reasoning": {"effort": "medium"}}
    with client.responses.stream(**options) as stream:
        events = list(stream)
        answer = stream.get_final_response()
    assert answer.output_text == own["text"] and answer.status == "completed"
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert thought == own["thinking"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == own["text"]
    numbers = [event.sequence_number for event in events]
    assert numbers == list(range(len(numbers)))
    assert [events[0].type, events[1].type, events[-1].type] == [
        "response.created", "response.in_progress", "response.completed",
    ]  # fmt: skip
    assert answer.usage and 0 < answer.usage.output_tokens_details.reasoning_tokens < answer.usage.output_tokens

    async def text() -> str:
        async with asynchronous(demo_server) as client, client.responses.stream(**options) as stream:
            return (await stream.get_final_response()).output_text

    assert asyncio.run(text()) == own["text"]


def test_a_response_that_is_cut(client: OpenAI, own_answers: OwnAnswers) -> None:
    answer = client.responses.create(model=MODEL, input=FRANCE, temperature=0, max_output_tokens=3)
    assert answer.status == "incomplete" and answer.output_text == own_answers.chat(FRANCE, max_tokens=3)["text"]
    assert answer.incomplete_details and answer.incomplete_details.reason == "max_output_tokens"


# What goes wrong


def test_more_tokens_than_there_is_room_for(client: OpenAI, own_answers: OwnAnswers) -> None:
    """As editors and agents ask for, whatever the context is."""
    own = own_answers.chat(FRANCE)["text"]
    options: Any = {"model": MODEL, "temperature": 0}
    chat = client.chat.completions.create(messages=asked(FRANCE), max_tokens=32_000, **options)
    assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == (own, "stop")
    answer = client.responses.create(input=FRANCE, max_output_tokens=32_000, **options)
    assert (answer.output_text, answer.status) == (own, "completed")


def test_a_prompt_beyond_the_context(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as failed:
        client.chat.completions.create(model=MODEL, messages=asked("word " * 3000))
    assert failed.value.code == "context_length_exceeded" and failed.value.type == "invalid_request_error"
    assert "1,024" in failed.value.message and "3,0" in failed.value.message
    for call in (
        lambda: client.completions.create(model=MODEL, prompt="word " * 3000),
        lambda: client.responses.create(model=MODEL, input="word " * 3000),
    ):
        with pytest.raises(openai.BadRequestError) as failed:
            call()
        assert failed.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"n": 0}, "n"),
        ({"modalities": ["audio"], "audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"store": True}, "store"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_refused_is_named(client: OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as failed:
        client.chat.completions.create(**{"model": MODEL, "messages": asked("Hi"), **options})
    assert failed.value.param == param and param in failed.value.message


def test_what_nobody_knows_is_reported(client: OpenAI) -> None:
    options: Any = {"model": MODEL, "messages": asked("Hello"), "temperature": 0, "max_completion_tokens": 2}
    raw = client.chat.completions.with_raw_response.create(extra_body={"tempreature": 1}, **options)
    assert raw.headers["x-hetero-unknown-fields"] == "tempreature" and raw.request_id
    assert raw.parse().choices[0].message.content
    with client.chat.completions.with_streaming_response.create(**options) as response:
        assert "x-hetero-unknown-fields" not in response.headers
        assert response.parse().choices[0].message.content


@pytest.mark.parametrize("name", ["chat", "completions", "responses"])
def test_a_model_that_is_not_there(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as failed:
        if name == "chat":
            client.chat.completions.create(model="gpt-5", messages=asked("Hi"))
        elif name == "completions":
            client.completions.create(model="gpt-5", prompt="Hi")
        else:
            client.responses.create(model="gpt-5", input="Hi")
    assert failed.value.code == "model_not_found"


def test_a_wrong_key(client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as failed:
        client.with_options(api_key="another-key").models.list()
    assert failed.value.code == "invalid_api_key"


def test_a_path_that_is_not_there(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as failed:
        client.embeddings.create(model="demo", input="Hi")
    assert failed.value.code == "unknown_url"


def test_too_many_at_once(client: OpenAI, own_answers: OwnAnswers) -> None:
    streams = []
    try:
        with pytest.raises(openai.RateLimitError) as failed:
            for _ in range(12):
                streams.append(
                    client.completions.create(model=MODEL, prompt=ONCE, temperature=0, max_tokens=900, stream=True)
                )
        assert failed.value.code == "queue_full" and len(streams) >= 4
        assert 1 <= int(failed.value.response.headers["retry-after"]) <= 60
    except BaseException:
        for stream in streams:
            stream.close()
        raise
    leaving = threading.Timer(0.2, lambda: [stream.close() for stream in streams])
    leaving.start()
    answer = client.with_options(max_retries=3).chat.completions.create(
        model=MODEL, messages=asked(FRANCE), temperature=0
    )
    leaving.join()
    assert answer.choices[0].message.content == own_answers.chat(FRANCE)["text"]


def test_a_client_that_loses_patience(client: OpenAI, demo_server: Served, own_answers: OwnAnswers) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(
            model=MODEL, prompt=ONCE, temperature=0, max_tokens=900, extra_headers={"x-request-id": "impatient"}
        )
    assert "ended=disconnected" in demo_server.logged("id=impatient")
    answer = client.chat.completions.create(model=MODEL, messages=asked(FRANCE), temperature=0)
    assert answer.choices[0].message.content == own_answers.chat(FRANCE)["text"]


@pytest.mark.parametrize("kind", ["sync", "async", "responses"])
def test_a_stream_that_is_closed_ends_its_sequence(client: OpenAI, demo_server: Served, kind: str) -> None:
    name = f"closed-{kind}"
    options: Any = {"model": MODEL, "stream": True, "extra_headers": {"x-request-id": name}}

    async def leave() -> None:
        async with asynchronous(demo_server) as client:
            stream = await client.completions.create(prompt=ONCE, temperature=0, max_tokens=900, **options)
            await anext(stream)
            await stream.close()

    if kind == "sync":
        with client.completions.create(prompt=ONCE, temperature=0, max_tokens=900, **options) as stream:
            next(stream)
    elif kind == "async":
        asyncio.run(leave())
    else:
        ids = demo_server.post("/tokenize", {"content": "a", "add_special": False}, {"authorization": f"Bearer {KEY}"})
        body = {"logit_bias": {str(ids["tokens"][0]): 100}}
        with client.chat.completions.create(messages=asked("Hi"), max_tokens=900, extra_body=body, **options) as stream:
            next(stream)
    line = demo_server.logged(f"id={name} ")
    generated = int(line.split("generated_tokens=")[1].split()[0]) if "generated_tokens=" in line else 0
    assert "ended=disconnected" in line and generated < 800


def test_a_server_that_is_not_there() -> None:
    with (
        OpenAI(base_url="http://127.0.0.1:9/v1", api_key=KEY, max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.models.list()
