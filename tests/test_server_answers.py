"""From a scheduler's events to each interface's words: documents, streams, failures, clients that go away."""

import asyncio
import json
from itertools import count
from typing import Any

import anthropic.types
import openai.types.responses
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from hetero.errors import Draining, FileError, KernelError, QueueFull
from hetero.sampler import Sampling
from hetero.server.app import create_app
from hetero.server.settings import Limits, ServeSettings
from tests.fake_scheduler import FakeScheduler, fake_service

USER = [{"role": "user", "content": "Hi"}]
SAID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": USER, "max_tokens": 50},
}
OPEN_RESPONSES = {  # what each response has, by the schema of https://www.openresponses.org/reference
    "background", "completed_at", "created_at", "error", "frequency_penalty", "id", "incomplete_details",
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model", "object", "output",
    "parallel_tool_calls", "presence_penalty", "previous_response_id", "prompt_cache_key", "reasoning",
    "safety_identifier", "service_tier", "status", "store", "temperature", "text", "tool_choice", "tools",
    "top_logprobs", "top_p", "truncation", "usage",
}  # fmt: skip


class Client:
    """Calls the application as uvicorn does. `stay`: seconds after which it goes away."""

    def __init__(self, scheduler: FakeScheduler, settings: ServeSettings | None = None, **named: Any):
        self.service = fake_service(scheduler, settings, **named)
        self.app = create_app(self.service, self.service.settings)

    def post(
        self, path: str, body: Any, stay: float | None = None, slow: float = 0.0
    ) -> tuple[int, dict[str, str], str]:
        return asyncio.run(self._post(path, body, stay, slow))

    async def _post(self, path: str, body: Any, stay: float | None, slow: float) -> tuple[int, dict[str, str], str]:
        sent: list[Any] = []
        asked = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        loop = asyncio.get_running_loop()
        leaves = loop.time() + (1000 if stay is None else stay)

        async def receive() -> Any:
            if asked:
                return asked.pop()
            await asyncio.sleep(leaves - loop.time())
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await asyncio.sleep(slow)
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": headers,
            "client": None,
            "query_string": b"",
        }
        await self.app(scope, receive, send)
        told = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]} if sent else {}
        text = b"".join(message.get("body", b"") for message in sent).decode()
        return (sent[0]["status"] if sent else 0), told, text


def ask(path: str, *answers: Any, **fields: Any) -> Any:
    """The document."""
    status, headers, body = Client(FakeScheduler(list(answers))).post(path, SAID[path] | fields)
    assert (status, headers["content-type"]) == (200, "application/json"), body
    return json.loads(body)


def stream(path: str, *answers: Any, **fields: Any) -> list[Any]:
    """The events' documents; the names of events are those within."""
    client = Client(FakeScheduler(list(answers), cached=1))
    status, headers, body = client.post(path, SAID[path] | {"stream": True} | fields)
    assert status == 200 and headers["content-type"].startswith("text/event-stream"), body
    return events(body)


def events(body: str) -> list[Any]:
    found = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        document = lines["data"] if lines["data"] == "[DONE]" else json.loads(lines["data"])
        assert "event" not in lines or lines["event"] == document["type"]
        found.append(document)
    return found


def test_chat() -> None:
    found = ask("/v1/chat/completions", "<think>\nhm\n</think>\n\nYes.", "No.", n=2, logprobs=True, top_logprobs=2)
    ChatCompletion.model_validate(found, strict=True)
    first, second = found["choices"]
    assert first["message"] == {"role": "assistant", "content": "Yes.", "refusal": None, "reasoning_content": "hm"}
    assert second["message"]["content"] == "No." and "reasoning_content" not in second["message"]
    assert [one["index"] for one in found["choices"]] == [0, 1]
    assert first["finish_reason"] == "stop"
    tokens = second["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == "No."
    assert tokens[0]["bytes"] == [78] and tokens[0]["logprob"] == -0.5
    assert [top["token"] for top in tokens[0]["top_logprobs"]] == ["N", "x"]
    assert "Yes." in "".join(token["token"] for token in first["logprobs"]["content"])
    assert "h" not in "".join(token["token"] for token in first["logprobs"]["content"])
    assert found["usage"]["completion_tokens"] == len("<think>\nhm\n</think>\n\nYes.") + 3
    assert found["usage"]["prompt_tokens"] == len("[user]Hi[assistant]")


def test_chat_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetero.server.exchange.perf_counter", count(7.0, 0.25).__next__)  # of one event each
    found = stream(
        "/v1/chat/completions", "<think>hm</think>Yes", stream_options={"include_usage": True}, return_progress=True
    )
    assert found.pop() == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate(one) for one in found]
    last = found.pop()
    assert last["choices"] == [] and last["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] >= 2
    assert [one["prompt_progress"] for one in found if not one["choices"]] == [
        {"total": 19, "cache": 1, "processed": 1, "time_ms": 0},
        {"total": 19, "cache": 1, "processed": 19, "time_ms": 250},
    ]
    deltas = [one["choices"][0]["delta"] for one in found if one["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    assert found[-1]["choices"][0]["finish_reason"] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_stop_strings_end_the_sequence() -> None:
    scheduler = FakeScheduler(["one two three"])
    _, _, body = Client(scheduler).post("/v1/chat/completions", SAID["/v1/chat/completions"] | {"stop": [" two"]})
    found = json.loads(body)["choices"][0]
    assert (found["message"]["content"], found["finish_reason"]) == ("one", "stop")
    assert scheduler.cancelled[0] == 0
    assert json.loads(body)["usage"]["completion_tokens"] == len("one two")
    message = ask("/v1/messages", "one two three", stop_sequences=["x", " two"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", " two")
    assert message["content"] == [{"type": "text", "text": "one"}]


def test_the_other_choices_wait_for_the_first_one_s_first_token() -> None:
    scheduler = FakeScheduler(["abc", "abc", "abc"])
    client = Client(scheduler)
    client.post("/v1/chat/completions", SAID["/v1/chat/completions"] | {"n": 3, "seed": 7, "stream": True})
    assert [request.later for request in scheduler.requests] == [False, True, True]
    assert [request.sampling.seed for request in scheduler.requests] == [7, 8, 9]
    stuck = FakeScheduler([None, "never"])
    Client(stuck).post("/v1/chat/completions", SAID["/v1/chat/completions"] | {"n": 2}, stay=0.05)
    assert len(stuck.requests) == 1


def test_completions() -> None:
    found = ask("/v1/completions", "ab", "cd", "ef", "gh", prompt=["P", "QR"], n=2, echo=True)
    Completion.model_validate(found, strict=True)
    assert [one["text"][:-2] for one in found["choices"]] == ["P", "P", "QR", "QR"]
    assert sorted(one["text"][-2:] for one in found["choices"]) == ["ab", "cd", "ef", "gh"]
    assert found["usage"]["prompt_tokens"] == 3
    logprobs = ask("/v1/completions", "<think>", logprobs=2)["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == "<think>" and logprobs["text_offset"] == list(range(7))
    assert logprobs["top_logprobs"][0] == {"<": -0.5, "x": -2.0}
    taken = ask("/v1/completions", "ab", logprobs=0)["choices"][0]["logprobs"]
    assert taken["top_logprobs"] == [{"a": -0.5}, {"b": -0.5}], "none is asked for: those that were taken"
    chunks = stream("/v1/completions", "abc", echo=True, max_tokens=2, stream_options={"include_usage": True})
    assert "".join(one["choices"][0]["text"] for one in chunks[:-2]) == "Hiab"
    assert chunks[-3]["choices"][0]["finish_reason"] == "length" and chunks[-2]["usage"]["completion_tokens"] == 2


def test_responses() -> None:
    found = ask("/v1/responses", "<think>hm</think>Yes", top_logprobs=1, instructions="Be brief.", metadata={"a": "b"})
    TypeAdapter(openai.types.responses.Response).validate_python(found)
    reasoning, message = found["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}] and reasoning["summary"] == []
    assert message["content"][0]["text"] == "Yes" and message["status"] == found["status"] == "completed"
    assert "".join(one["token"] for one in message["content"][0]["logprobs"]).endswith("Yes")
    assert found["instructions"] == "Be brief." and found["metadata"] == {"a": "b"} and found["store"] is False
    assert set(found) >= OPEN_RESPONSES and found["completed_at"] >= found["created_at"]
    assert ask("/v1/responses", "a", presence_penalty=0.5, safety_identifier="s")["presence_penalty"] == 0.5
    cut = ask("/v1/responses", "Yes", max_output_tokens=2)
    assert set(cut) >= OPEN_RESPONSES and cut["completed_at"] is None
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert cut["output"][0]["status"] == "incomplete"


def test_responses_streamed() -> None:
    found = stream("/v1/responses", "<think>hm</think>Yes")
    adapter = TypeAdapter(openai.types.responses.ResponseStreamEvent)
    for one in found:
        adapter.validate_python(one)
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    kinds = list(dict.fromkeys(one["type"].removeprefix("response.") for one in found))
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done", "output_text.delta", "output_text.done",
        "completed",
    ]  # fmt: skip
    assert "".join(one["delta"] for one in found if one["type"] == "response.output_text.delta") == "Yes"
    final = found[-1]["response"]
    done = [one["item"] for one in found if one["type"] == "response.output_item.done"]
    assert final["output"] == done and final["usage"]["input_tokens_details"]["cached_tokens"] == 1
    assert found[0]["response"]["output"] == [] and found[0]["response"]["status"] == "in_progress"
    assert set(found[0]["response"]) >= OPEN_RESPONSES


def test_messages() -> None:
    found = ask("/v1/messages", "<think>hm</think>Yes")
    TypeAdapter(anthropic.types.Message).validate_python(found)
    assert found["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "unsigned"},
        {"type": "text", "text": "Yes"},
    ]
    assert (found["stop_reason"], found["stop_sequence"]) == ("end_turn", None)
    hidden = ask("/v1/messages", "<think>hm</think>Yes", thinking={"type": "adaptive", "display": "omitted"})
    assert hidden["content"][0] == {"type": "thinking", "thinking": "", "signature": "unsigned"}
    assert ask("/v1/messages", "Yes", max_tokens=2)["stop_reason"] == "max_tokens"
    long = ask("/v1/messages", "Yes" * 100, max_tokens=100_000)
    assert long["stop_reason"] == "model_context_window_exceeded" and long["usage"]["output_tokens"] == 200 - 19


def test_messages_streamed() -> None:
    found = stream("/v1/messages", "<think>hm</think>Yes", return_progress=True)
    adapter: Any = TypeAdapter(anthropic.types.RawMessageStreamEvent)
    for one in found:
        if one["type"] != "ping":
            adapter.validate_python(one)
    kinds = list(dict.fromkeys(one["type"] for one in found))
    assert kinds == [
        "message_start", "ping", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    usage = found[0]["message"]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (18, 1)
    deltas = [one["delta"] for one in found if one["type"] == "content_block_delta"]
    assert {"type": "signature_delta", "signature": "unsigned"} in deltas
    assert "".join(delta.get("text", "") for delta in deltas) == "Yes"
    assert found[-2]["delta"]["stop_reason"] == "end_turn" and found[-2]["usage"]["output_tokens"] > 3


def test_no_blanks_before_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetero.server.prompts.constraint", lambda ask, prompt, loaded: None)
    (found,) = ask("/v1/chat/completions", "\n\n {} ", response_format={"type": "json_object"})["choices"]
    assert found["message"]["content"] == "{} "
    (found,) = ask("/v1/chat/completions", "\n\n {} ")["choices"]
    assert found["message"]["content"] == "\n\n {} "


WEATHER = {"name": "weather", "parameters": {"type": "object"}}
CALLS = (
    'Look.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"town": "Rome"}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n"
)


@pytest.fixture
def unconstrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake vocabulary has no grammars."""
    monkeypatch.setattr("hetero.server.prompts.constraint", lambda ask, prompt, loaded: None)


def test_tool_calls_of_a_chat(unconstrained: None) -> None:
    tools = {"tools": [{"type": "function", "function": WEATHER}]}
    (found,) = ask("/v1/chat/completions", CALLS, **tools)["choices"]
    assert found["finish_reason"] == "tool_calls" and found["message"]["content"] == "Look."
    calls = found["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"town": "Rome"}'},
        {"name": "weather", "arguments": "{}"},
    ]
    assert len({call["id"] for call in calls}) == 2
    chunks = stream("/v1/chat/completions", CALLS, **tools)[:-1]
    deltas = [call for one in chunks for call in one["choices"][0]["delta"].get("tool_calls", [])]
    assert [call["id"] is not None for call in deltas if "id" in call] == [True, True]
    for index, arguments in enumerate(['{"town": "Rome"}', "{}"]):
        assert "".join(call["function"]["arguments"] for call in deltas if call["index"] == index) == arguments
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    (one,) = ask("/v1/chat/completions", CALLS, **tools, parallel_tool_calls=False)["choices"]
    assert len(one["message"]["tool_calls"]) == 1 and one["finish_reason"] == "tool_calls"
    (none,) = ask("/v1/chat/completions", "\n\nNo.", **tools)["choices"]
    assert (none["message"]["content"], none["finish_reason"]) == ("\n\nNo.", "stop")
    (plain,) = ask("/v1/chat/completions", CALLS, **tools, tool_choice="none")["choices"]
    assert plain["message"]["content"] == CALLS and "tool_calls" not in plain["message"]


def test_tool_calls_of_a_response(unconstrained: None) -> None:
    tools = {"tools": [{"type": "function", **WEATHER}]}
    found = ask("/v1/responses", CALLS, **tools)
    TypeAdapter(openai.types.responses.Response).validate_python(found)
    assert type(found["created_at"]) is type(found["completed_at"]) is int, "clients of strict types take no other"
    assert [item["type"] for item in found["output"]] == ["message", "function_call", "function_call"]
    assert found["output"][1]["arguments"] == '{"town": "Rome"}' and found["output"][1]["status"] == "completed"
    events = stream("/v1/responses", CALLS, **tools)
    adapter: Any = TypeAdapter(openai.types.responses.ResponseStreamEvent)
    for one in events:
        adapter.validate_python(one)
    done = [one for one in events if one["type"] == "response.function_call_arguments.done"]
    assert [one["arguments"] for one in done] == ['{"town": "Rome"}', "{}"]
    assert [one["output_index"] for one in done] == [1, 2]


def test_a_call_in_a_namespace_is_told_by_both_names(unconstrained: None) -> None:
    space = {"type": "namespace", "name": "mcp__sky", "tools": [{"type": "function", **WEATHER}]}
    tools = [space, {"type": "web_search"}]
    said = CALLS.replace("weather", "mcp__sky__weather")
    found = ask("/v1/responses", said, tools=tools)
    TypeAdapter(openai.types.responses.Response).validate_python(found)
    assert [(one["namespace"], one["name"]) for one in found["output"][1:]] == [("mcp__sky", "weather")] * 2
    added = [one["item"] for one in stream("/v1/responses", said, tools=tools) if one["type"].endswith("item.added")]
    assert [(one["namespace"], one["name"]) for one in added[1:]] == [("mcp__sky", "weather")] * 2
    body = SAID["/v1/responses"] | {"tools": tools}
    _, headers, _ = Client(FakeScheduler(["Yes"])).post("/v1/responses", body)
    assert headers["x-hetero-unknown-fields"] == "tools[1].web_search: not offered"


def test_tool_calls_of_a_message(unconstrained: None) -> None:
    tools = {"tools": [{"name": "weather", "input_schema": {"type": "object"}}], "max_tokens": 178}
    found = ask("/v1/messages", CALLS, **tools)
    assert [block["type"] for block in found["content"]] == ["text", "tool_use", "tool_use"]
    assert found["content"][1]["input"] == {"town": "Rome"} and found["stop_reason"] == "tool_use"
    events = stream("/v1/messages", CALLS, **tools)
    starts = [one["content_block"] for one in events if one["type"] == "content_block_start"]
    assert [(block["type"], block.get("name")) for block in starts] == [
        ("text", None),
        ("tool_use", "weather"),
        ("tool_use", "weather"),
    ]
    parts = [one for one in events if one["type"] == "content_block_delta" and one["index"] == 1]
    assert "".join(one["delta"]["partial_json"] for one in parts) == '{"town": "Rome"}'
    cut = ask("/v1/messages", CALLS[:70], **tools | {"max_tokens": 70})
    assert cut["stop_reason"] == "max_tokens" and cut["content"][1]["input"] == {}


@pytest.mark.parametrize("path", SAID)
def test_context(path: str) -> None:
    scheduler = FakeScheduler(["x"] * 4)
    long = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path)
    text = "x" * 300
    body = SAID[path] | ({long: text} if long else {"messages": [{"role": "user", "content": text}]})
    status, _, answer = Client(scheduler).post(path, body)
    message = json.loads(answer)["error"]["message"]
    assert status == 400 and "the context holds 200" in message and "the prompt has 3" in message
    if path != "/v1/messages":
        error = json.loads(answer)["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", long or "messages")
    assert scheduler.requests == []


@pytest.mark.parametrize("path", SAID)
def test_more_tokens_than_there_is_room_for_are_as_many_as_there_is(path: str) -> None:
    names = {"/v1/chat/completions": ("max_tokens", "max_completion_tokens"), "/v1/responses": ("max_output_tokens",)}
    for name in names.get(path, ("max_tokens",)):
        found = ask(path, "x" * 300, **{name: 32_000})
        used = found["usage"]
        kinds = ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens")
        assert sum(used.get(kind, 0) for kind in kinds) == 200
        if path == "/v1/responses":
            assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        elif path != "/v1/messages":
            assert found["choices"][0]["finish_reason"] == "length"


def test_a_prompt_that_leaves_no_room_for_one_token() -> None:
    client = Client(FakeScheduler(["x"]))
    for size, said in (
        (200, "the prompt has 200 tokens; the context holds 200, one of them the answer's; shorten the prompt"),
        (201, "the prompt has 201 tokens; the context holds 200; shorten the prompt"),
    ):
        status, _, answer = client.post("/v1/completions", {"prompt": [1] * size})
        assert (status, json.loads(answer)["error"]["message"]) == (400, said)
    assert client.post("/v1/completions", {"prompt": [1] * 199})[0] == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFull(3, 7.2), 429, "queue_full"),
        (Draining(), 503, "draining"),
        (KernelError("broken"), 500, "model_failed"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_cannot_be_submitted(error: Any, status: int, code: str, streamed: bool) -> None:
    client = Client(FakeScheduler([], refuses=error))
    found, headers, body = client.post("/v1/chat/completions", SAID["/v1/chat/completions"] | {"stream": streamed})
    assert (found, json.loads(body)["error"]["code"]) == (status, code)
    assert ("retry-after" in headers) == (status != 500)
    assert status != 429 or headers["retry-after"] == "7"


def test_clients_are_not_told_where_files_are_and_health_says_that_the_model_failed() -> None:
    scheduler = FakeScheduler([FileError("/secret/model.gguf: output.weight could not be read")])
    client = Client(scheduler)
    status, _, body = client.post("/v1/chat/completions", SAID["/v1/chat/completions"])
    assert status == 500 and "model_failed" in body and "secret" not in body
    assert client.service.health == "ready"
    scheduler.failed = True
    assert client.service.health == "failed"


@pytest.mark.parametrize("path", SAID)
def test_a_failure_is_the_one_request_s(path: str) -> None:
    client = Client(FakeScheduler([KernelError("a fault"), "fine", KernelError("a fault"), "fine"]))
    status, _, body = client.post(path, SAID[path])
    assert status == 500 and "the model failed" in json.loads(body)["error"]["message"]
    assert client.post(path, SAID[path])[0] == 200
    status, _, body = client.post(path, SAID[path] | {"stream": True})
    last = events(body)[-1]
    assert status == 200 and last != "[DONE]"
    assert last["response"]["error"] if path == "/v1/responses" else last["error"]
    assert client.post(path, SAID[path] | {"stream": True})[0] == 200


@pytest.mark.parametrize("path", SAID)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_goes_away(path: str, streamed: bool) -> None:
    scheduler = FakeScheduler([None])
    client = Client(scheduler)
    client.post(path, SAID[path] | {"stream": streamed}, stay=0.05)
    assert scheduler.cancelled and client.app.answering == 0


def test_keep_alive_and_a_client_that_takes_nothing() -> None:
    settings = ServeSettings(limits=Limits(keep_alive_seconds=0.01, write_seconds=0.05))
    scheduler = FakeScheduler([None, None])
    body = SAID["/v1/chat/completions"] | {"stream": True}
    _, _, text = Client(scheduler, settings).post("/v1/chat/completions", body, stay=0.1)
    assert text.count(": keep-alive\n\n") >= 2
    _, _, text = Client(scheduler, settings).post("/v1/chat/completions", body, slow=5.0)
    assert text == "" and scheduler.cancelled[-1] == 1


def test_defaults_and_names_of_the_server() -> None:
    settings = ServeSettings(sampling=Sampling(temperature=0.25, top_k=5), aliases=("gpt-x",))
    scheduler = FakeScheduler(["a", "b"])
    client = Client(scheduler, settings)
    assert client.post("/v1/chat/completions", {"messages": USER, "model": "gpt-x", "top_k": 6})[0] == 200
    assert (scheduler.requests[0].sampling.temperature, scheduler.requests[0].sampling.top_k) == (0.25, 6)
    status, _, body = client.post("/v1/chat/completions", {"messages": USER, "model": "/etc/passwd"})
    assert status == 404 and json.loads(body)["error"]["code"] == "model_not_found"
    _, headers, _ = client.post("/v1/chat/completions", {"messages": USER, "temprature": 1})
    assert headers["x-hetero-unknown-fields"] == "temprature"


def test_a_stream_that_fails_names_its_request() -> None:
    scheduler = FakeScheduler([KernelError("a worker died")])
    path = "/v1/messages"
    _, headers, text = Client(scheduler).post(path, SAID[path] | {"stream": True})
    failed = json.loads(text.split("data: ")[-1])
    assert failed["type"] == "error" and failed["request_id"] == headers["request-id"]
