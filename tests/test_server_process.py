"""`hetero serve demo` as a process: what it promises, answers, refuses, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from hetero.server.page_files import PAGE
from tests.served import ROOT, Served, served

DOCS = ROOT / "docs" / "serve.md"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    with served(api_key_file=keys, log_format="json", temperature=0, cors_origin=["http://localhost:3000"]) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=120) as one:
        yield one


def chat(client: httpx.Client, **fields: Any) -> Any:
    response = client.post("/v1/chat/completions", json={"messages": CAPITAL, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def text(client: httpx.Client, **fields: Any) -> str:
    return chat(client, **fields)["choices"][0]["message"]["content"]


def test_every_interface_gives_the_same_answer(client: httpx.Client) -> None:
    assert text(client) == PARIS
    assert client.post("/v1/responses", json={"input": CAPITAL}).json()["output"][0]["content"][0]["text"] == PARIS
    message = client.post("/v1/messages", json={"messages": CAPITAL, "max_tokens": 50}).json()
    assert message["content"] == [{"type": "text", "text": PARIS}]
    prompt = client.post("/tokenize", json={"messages": CAPITAL}).json()
    completion = client.post("/v1/completions", json={"prompt": prompt["tokens"], "max_tokens": 50}).json()
    assert completion["choices"][0]["text"] == PARIS
    counted = client.post("/v1/messages/count_tokens", json={"messages": CAPITAL}).json()
    assert counted["input_tokens"] == prompt["count"] == completion["usage"]["prompt_tokens"]
    with client.stream("POST", "/v1/chat/completions", json={"messages": CAPITAL, "stream": True}) as response:
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == PARIS


def documented() -> list[tuple[str, str, str]]:
    """(path, body, answer) of the examples in docs/serve.md."""
    blocks = re.findall(r"```\n\$ curl -s http://127.0.0.1:8000(\S+) (.+?)'\n(.+?)\n```", DOCS.read_text(), re.DOTALL)
    return [(path, command.partition("-d '")[2], answer) for path, command, answer in blocks]


def without_names(text: str) -> str:
    """What differs each time."""
    text = re.sub(r'"(chatcmpl-|cmpl-|msg_|req_)[0-9a-f]{24}"', '"..."', text)
    return re.sub(r'"created":\d+', '"created":0', text).strip()


def test_documented_answers_are_real(client: httpx.Client) -> None:
    examples = documented()
    assert len(examples) == 6
    for path, body, answer in examples:
        response = client.post(path, content=body.encode(), headers={"content-type": "application/json"})
        assert without_names(response.text) == without_names(answer), path


def test_the_page(client: httpx.Client) -> None:
    for path, file in PAGE.items():
        response = httpx.get(f"{client.base_url}{path}".replace("//", "/").replace(":/", "://"))
        assert response.status_code == 200 and response.content == file.read_bytes()
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
    assert "/" in PAGE and client.get("/index.html").status_code == 404


def test_sampling(client: httpx.Client) -> None:
    found = chat(client, max_tokens=3)["choices"][0]
    assert (found["message"]["content"], found["finish_reason"]) == ("The capital of", "length")
    assert text(client, stop=[" of", "x"]) == "The capital"
    tokens = client.post("/tokenize", json={"content": "The"}).json()["tokens"]
    assert not text(client, logit_bias={str(tokens[0]): -100}).startswith("The ")
    hot = {"temperature": 2.0, "top_p": 1.0, "max_tokens": 20}
    assert text(client, seed=5, **hot) == text(client, seed=5, **hot) != text(client, seed=6, **hot)
    assert text(client, presence_penalty=50, max_tokens=30) != PARIS
    many = chat(client, n=3, seed=5, **hot)["choices"]
    assert len({one["message"]["content"] for one in many}) == 3
    assert many[0]["message"]["content"] == text(client, seed=5, **hot)
    logprobs = chat(client, logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in logprobs) == PARIS
    for one in logprobs:
        assert one["logprob"] == one["top_logprobs"][0]["logprob"] <= 0 and len(one["top_logprobs"]) == 3


def test_a_prefix_is_not_read_again(client: httpx.Client) -> None:
    long = [{"role": "user", "content": "Where is it? " * 60}]
    first = chat(client, messages=long, max_tokens=2)["usage"]
    again = chat(client, messages=long, max_tokens=2)["usage"]
    assert (
        first["prompt_tokens_details"]["cached_tokens"] == 0 < 64 * 2 <= again["prompt_tokens_details"]["cached_tokens"]
    )


def test_refusals(client: httpx.Client) -> None:
    long = [{"role": "user", "content": "word " * 3000}]
    response = client.post("/v1/chat/completions", json={"messages": long})
    assert response.status_code == 400 and "1,024" in response.text and "3,006" in response.text
    response = client.post("/v1/chat/completions", json={"messages": CAPITAL, "colour": 1})
    assert response.headers["x-hetero-unknown-fields"] == "colour"
    response = client.post("/v1/chat/completions", content=b"[" * 100_000, headers={"content-type": "application/json"})
    assert response.status_code == 400 and "deep" in response.text
    response = client.post("/v1/completions", json={"prompt": [16_000_000]})
    assert response.status_code == 400 and "vocabulary" in response.text
    response = client.post("/v1/chat/completions", json={"messages": CAPITAL, "logit_bias": {"999999": 1}})
    assert response.status_code == 400 and "999999" in response.text
    assert client.get("/nothing").status_code == 404 and client.get("/v1/models/none").status_code == 404
    assert httpx.get(f"{client.base_url}/v1/models").status_code == 401
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403


def test_what_it_says_of_itself(client: httpx.Client, server: Served) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["context_length"]) == ("demo", 1024)
    assert client.get("/v1/models/demo").json() == model
    assert "leave out the slash" in client.get("/v1/models/").text
    assert httpx.get(f"{client.base_url}/health").json() == {"status": "ready"}
    panel = client.get("/panel").json()
    assert panel["sequences"] == 4 and panel["now"]["pages"] == 64 and panel["plan"]["memories"]
    assert panel["plan"]["ceiling_tokens_per_second"] > 0
    metrics = client.get("/metrics").text
    for name in ("hetero_max_token_gap_seconds 0.5", 'hetero_state{state="ready"} 1.0', "hetero_tokens_total"):
        assert name in metrics
    count = re.search(r'hetero_requests_total\{path="/v1/models",status="200"\} (\d+)', metrics)
    assert count and int(count[1]) >= 1
    assert 'path="/v1/models/{name}",status="200"' in metrics and "_created" not in metrics
    document = client.get("/openapi.json").json()
    served_paths = {path for path in document["paths"] if path not in ("/metrics",)}
    for path in served_paths:
        assert client.request("PUT", path.replace("{name}", "demo")).status_code == 405
    log = [json.loads(line) for line in server.log]
    assert any("4 answers at once, 1,024 tokens of context" in line["message"] for line in log)
    assert any("ceiling" in line["message"] for line in log) and any("500 ms" in line["message"] for line in log)
    requests = [line for line in log if line.get("path") == "/v1/chat/completions" and line.get("status") == 200]
    assert requests and all(line["id"].startswith("req_") and line["seconds"] > 0 for line in requests)


def test_a_client_that_leaves_frees_its_place(client: httpx.Client) -> None:
    endless = {"messages": CAPITAL, "stream": True, "max_tokens": 900, "logit_bias": {"1": -100, "2": -100}}
    endless["temperature"] = 3.0
    with client.stream("POST", "/v1/chat/completions", json=endless) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 60
    while client.get("/panel").json()["now"]["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nothing_of_prompts_is_in_the_log(client: httpx.Client, server: Served) -> None:
    text(client, messages=[{"role": "user", "content": "xyzzy-secret"}], user="plugh-secret", max_tokens=2)
    client.post("/v1/chat/completions", json={"messages": "xyzzy-secret"})
    client.post("/v1/chat/completions", content=b'{"xyzzy-secret": ', headers={"content-type": "application/json"})
    assert "secret" not in "\n".join(server.log) and KEY not in "\n".join(server.log)


def start_stream(url: str, tokens: int) -> socket.socket:
    """A long answer, of which nothing was read yet but the first bytes."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"messages": CAPITAL, "stream": True, "max_tokens": tokens, "temperature": 3.0}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    one = socket.create_connection((host, int(port)), 60)
    one.sendall(head.encode() + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    one.recv(1000)
    return one


def status_of(url: str, body: bytes | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_it_drains_and_exits_with_0() -> None:
    with served(log_prompts=True) as one:
        stream = start_stream(one.url, 200)
        os.kill(one.process.pid, signal.SIGTERM)
        found = b""
        while part := stream.recv(65536):
            found += part
        stream.close()
        assert found.rstrip(b"\r\n0").endswith(b"data: [DONE]")
        assert one.process.wait(60) == 0
        assert "capital of France" in "\n".join(one.log)
        assert any("draining" in line for line in one.log)


def test_while_it_loads_and_a_second_signal() -> None:
    with served(ready=False, sequences=1) as one:
        status, body = status_of(one.url + "/health")
        assert (status, json.loads(body)["status"]) in ((503, "loading"), (200, "ready"))
        one.is_ready()
        streams = [start_stream(one.url, 900) for _ in range(6)]  # one after the other
        os.kill(one.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while status_of(one.url + "/health") != (503, '{"status":"draining"}'):
            assert time.monotonic() < deadline
        assert "draining" in status_of(one.url + "/v1/chat/completions", json.dumps({"messages": CAPITAL}).encode())[1]
        os.kill(one.process.pid, signal.SIGTERM)
        assert one.process.wait(30) == 130
        assert "stopping at once, in the middle of" in one.log[-1]
        assert not any("Exception" in line or "Traceback" in line for line in one.log)
        found = [b""] * len(streams)
        for at, stream in enumerate(streams):
            with stream, suppress(ConnectionResetError):
                while part := stream.recv(65536):
                    found[at] += part
        assert not any(b"Internal Server Error" in one for one in found)
        assert not all(b"[DONE]" in one for one in found)  # cut, as a client can see


def test_a_signal_while_it_loads() -> None:
    with served(ready=False) as one:
        os.kill(one.process.pid, signal.SIGTERM)
        assert one.process.wait(60) == 0


def test_what_cannot_be_served_is_one_line() -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "serve", "--context", "5000000", "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("hetero: ") and "5000000" in last and "Traceback" not in result.stderr
