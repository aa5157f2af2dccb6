"""`hetero chat --server`: against a server of the bundled model, and against one that says what it is told to."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hetero.chat import Chat
from hetero.errors import HeteroError, RequestError, ResourceError
from hetero.remote_chat import RemoteAnswers
from hetero.remote_server import RemoteServer
from hetero.terminal import Screen
from tests.own_answers import OwnAnswers
from tests.served import Served
from tests.test_chat import PROMPT, Terminal

ROOT = Path(__file__).parent.parent
KEY = "a-key-of-tests"
MODELS = {"data": [{"id": "m", "context_length": 100}, {"id": "other"}]}


class Scripted:
    """A server whose answers to chats are listed: bytes as they go over the line. `asked`: what it was sent."""

    def __init__(self, server: ThreadingHTTPServer, models: Any = MODELS, *answers: bytes):
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.models, self.answers = models, list(answers)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.keys.append(self.headers["authorization"])
            body = script.models if isinstance(script.models, bytes) else reply(script.models)
            self.wfile.write(body)

        def do_POST(self) -> None:
            script.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.wfile.write(script.answers.pop(0))

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script = Scripted(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()

    def start(*answers: bytes, models: Any = MODELS) -> Scripted:
        script.models, script.answers = models, list(answers)
        return script

    yield start
    server.shutdown()
    thread.join()
    server.server_close()


def reply(document: Any, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", "connection: close", *headers]
    return "\r\n".join([*lines, "", json.dumps(document)]).encode()


def refusal(status: str, message: str, code: str, *headers: str) -> bytes:
    return reply({"error": {"message": message, "code": code}}, status, *headers)


def events(*documents: Any, end: bool = True) -> bytes:
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n"
    lines = [one if isinstance(one, str) else f"data: {json.dumps(one)}\n\n" for one in documents]
    return (head + "".join(lines) + ("data: [DONE]\n\n" if end else "")).encode()


def said(reason: str | None = None, **delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def used(prompt: int, cached: int, generated: int) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return {"choices": [], "usage": usage}


def chat_with(script: Scripted, thinking: bool | None = None, **sampling: Any) -> Chat:
    return Chat(RemoteAnswers(RemoteServer(script.url), None, sampling, thinking), Screen())


def contents(chat: Chat) -> list[str]:
    return [turn["content"] for turn in chat.conversation.turns]


def test_each_turn_sends_the_earlier_ones(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    thought = events(
        ": keep-alive\n\n", said(role="assistant", content=""), said(reasoning_content="hm"), said(content="Par"),
        "event: x\r\ndata: " + json.dumps(said(content="is é")) + "\r\n\r\n", said("stop"), used(9, 4, 5),
    )  # fmt: skip
    script = scripted(thought, events(said(content="Rome"), said("stop")))
    chat = chat_with(script)
    chat.run(["/system S", "France?", "/stats", "Italy?"], interactive=False)
    out, err = capsys.readouterr()
    assert out == "Paris é\nRome\n" and "hm\n" in err
    assert "prompt 5 tokens (+4 cached)" in err and "answer 5 tokens" in err
    assert "2 messages; 14 of 100 tokens of context used, 5 generated" in err
    system = {"role": "system", "content": "S"}
    first = {"role": "user", "content": "France?"}
    answer = {"role": "assistant", "content": "Paris é", "reasoning_content": "hm"}
    assert script.asked[1]["messages"] == [system, first, answer, {"role": "user", "content": "Italy?"}]
    assert script.asked[0]["stream"] is True and script.asked[0]["model"] == "m"


def test_only_what_was_said_is_asked_for(scripted: Any) -> None:
    script = scripted(*[events(said("stop", content="x"))] * 2)
    chat_with(script).run(["one"], interactive=False)
    assert set(script.asked[0]) == {"model", "messages", "stream", "stream_options"}
    chat_with(script, True, temperature=0.5, logit_bias={5: -1.5}, stop=("a",), min_p=0.1).run(["x"], interactive=False)
    told = {name: script.asked[1][name] for name in ("temperature", "logit_bias", "stop", "min_p", "thinking")}
    assert told == {
        "temperature": 0.5, "logit_bias": {"5": -1.5}, "stop": ["a"], "min_p": 0.1, "thinking": {"type": "enabled"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_tokens": 2}, "cut at --max-tokens 2"),
        ({}, "the context of 100 tokens is full: /clear, or start the server"),
    ],
)
def test_a_cut_answer_says_why(
    scripted: Any, options: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_with(scripted(events(said(content="a"), said(content="b"), said("length"))), **options).turn("x")
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            refusal("400 Bad Request", "the prompt has 120 tokens; the context holds 100", "context_length_exceeded"),
            RequestError,
            "120 tokens; the context holds 100; /clear forgets",
        ),
        (refusal("400 Bad Request", "top_k is -1", "x"), RequestError, "top_k is -1"),
        (
            refusal("429 Too Many Requests", "64 requests wait", "queue_full", "retry-after: 7"),
            ResourceError,
            "64 requests wait; ask again in 7 s",
        ),
        (refusal("503 Service Unavailable", "the server drains", "draining"), ResourceError, "drains; ask again later"),
        (refusal("500 Internal Server Error", "it failed", "internal"), HeteroError, "it failed"),
        (
            b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 5\r\n\r\n<html",
            RequestError,
            "502 Bad Gateway; it is no server",
        ),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>", RequestError, "not with events"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", RequestError, "something else than HTTP"),
        (b"", ResourceError, "Remote end closed connection"),
        (events("data: {\n\n"), RequestError, "not JSON"),
        (events("data: [1]\n\n"), RequestError, "no object"),
        (events({"choices": [3]}), RequestError, "sent {'choices': [3]}"),
        (events({"choices": [{"delta": {"content": 3}}]}), RequestError, "in an answer"),
        (events({"error": {"message": "the model failed"}}), HeteroError, "the model failed"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else "",
)
def test_what_a_server_may_answer_instead(
    scripted: Any, answer: bytes, kind: type[Exception], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = chat_with(scripted(answer, events(said("stop", content="later"))))
    with pytest.raises(kind, match=re.escape(message)):
        chat.turn("one")
    chat.run(["two"], interactive=True)
    assert contents(chat) == ["two", "later"], "the conversation goes on without it"


def test_a_server_without_tls_is_told(scripted: Any) -> None:
    script = scripted()
    secure = script.url.replace("http:", "https:")
    with pytest.raises(RequestError, match=re.escape(f"{secure} does not speak TLS")) as found:
        RemoteAnswers(RemoteServer(secure), None, {}, None)
    assert f"try {script.url}" in str(found.value)


def test_an_answer_that_breaks_off_is_kept(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script = scripted(events(said(content="half"), end=False), events(said("stop", content="whole")))
    chat = chat_with(script)
    chat.run(["one", "two"], interactive=True)
    assert contents(chat) == ["one", "half", "two", "whole"]
    assert "ended in the middle of an answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            refusal("401 Unauthorized", "the API key is wrong", "invalid_api_key"),
            "--api-key-file FILE or HETERO_API_KEY",
        ),
        (
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "404 Not Found; it is no server of OpenAI's interface",
        ),
        (b"HTTP/1.1 301 Moved\r\nlocation: http://x/\r\ncontent-length: 0\r\n\r\n", "301 Moved"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", "something else than JSON"),
        (b"", "Remote end closed connection"),
        ({"data": 3}, "answered GET /v1/models with"),
        ([], "answered GET /v1/models with"),
        ({"data": []}, "has no model"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_no_server_of_this_kind(scripted: Any, models: Any, message: str) -> None:
    with pytest.raises(HeteroError, match=re.escape(message)):
        chat_with(scripted(models=models))


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://a:b", "http://a:99999", "http://u:p@h", "http://h/?q", "http://[::1", ""]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(RequestError, match="is no server's address"):
        RemoteServer(url)


def test_a_name_that_is_none() -> None:
    with pytest.raises(HeteroError, match=r"http://a\.\.b"):
        RemoteServer("a..b").get("/v1/models")


def test_addresses_keys_and_names(scripted: Any) -> None:
    script = scripted()
    port = script.url.rpartition(":")[2]
    for url in (script.url, f"{script.url}/", f"{script.url}/v1", f"{script.url}/v1/", f"localhost:{port}"):
        assert RemoteAnswers(RemoteServer(url, "secret"), "other", {}).context is None
    assert set(script.keys) == {"Bearer secret"}
    with pytest.raises(RequestError, match="has no model gone; it has m, other"):
        RemoteAnswers(RemoteServer(script.url), "gone", {})
    with pytest.raises(RequestError, match="API key"):
        RemoteServer(script.url, "gehe\nim")


def run(*arguments: str, stdin: str = "", key: str | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "HETERO_API_KEY"}
    command = [sys.executable, "cli.py", "chat", *arguments]
    environment |= {"HETERO_API_KEY": key} if key else {}
    return subprocess.run(command, cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, timeout=120)


def test_a_pipe_through_a_server_is_the_models_own(
    demo_server: Served, own_answers: OwnAnswers, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "key").chmod(0o600)
    questions = ["What is the capital of France?", "What is 2 + 3?"]
    flags = ["--server", demo_server.url, "--temperature", "0"]
    done = run(*flags, "--api-key-file", str(tmp_path / "key"), stdin="\n".join(questions))
    first = own_answers.chat(questions[0])["text"]
    turns = [("user", questions[0]), ("assistant", first), ("user", questions[1])]
    second = own_answers.chat([{"role": role, "content": content} for role, content in turns])["text"]
    assert (done.returncode, done.stdout) == (0, f"{first}\n{second}\n"), done.stderr
    assert done.stderr.count("tok/s") == 4
    thought = run(*flags, "--think", stdin=questions[0], key=KEY)
    own = own_answers.chat(questions[0], thinking=True)
    assert thought.stdout == own["text"] + "\n" and own["thinking"] in thought.stderr


def test_mistakes_of_a_command_line(demo_server: Served) -> None:
    done = run("--server", demo_server.url, stdin="x")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"hetero: .*an API key is needed.*--api-key-file FILE or HETERO_API_KEY\n", done.stderr)
    done = run("--server", demo_server.url, stdin="word " * 3000, key=KEY)
    assert done.returncode == 1 and "the context holds 1,024; shorten the prompt; /clear" in done.stderr
    done = run("--server", demo_server.url, "--context", "64", key=KEY)
    assert done.returncode == 2 and "--context" in done.stderr and "not with --server" in done.stderr
    done = run("--api-key-file", "/nowhere")
    assert done.returncode == 2 and "--server" in done.stderr


def test_a_session_in_a_terminal(demo_server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETERO_API_KEY", KEY)
    flags = ["--server", demo_server.url, "--temperature", "50", "--top-p", "1", "--seed", "1"]  # without end
    terminal = Terminal(sys.executable, "-m", "cli", "chat", *flags, home=tmp_path)
    assert f"demo at {demo_server.url}: /help lists" in terminal.expect(PROMPT)
    terminal.type("Go on\r")
    terminal.expect(r"\x1b\[\?2004l(.|\n){400}")  # the question is taken, an answer streams
    terminal.type("\x03")
    terminal.expect("interrupted")
    assert "ended=disconnected" in demo_server.logged("ended=disconnected")
    terminal.expect(PROMPT)
    terminal.type("/stats\r")
    assert re.search(r"2 messages; \d+ of 1,024 tokens of context used", terminal.expect("generated"))
    terminal.expect(PROMPT)
    terminal.type("\x04")
    assert terminal.close() == 0
