"""Who may pass: Host, Origin, key; and what is never told."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from hetero.errors import Draining, KernelError, RequestError, ResourceError, TemplateError
from hetero.server.gate import Gate, unknown_header
from hetero.server.record import Record, request_id
from hetero.server.refusal import Refusal
from hetero.server.settings import Limits, ServeSettings, is_loopback, read_keys

KEY = "correct-horse-battery"


def ask(
    settings: ServeSettings,
    path: str = "/v1/models",
    method: str = "GET",
    error: Exception | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], str, Record]:
    """Status, headers, body and record; the application behind the gate answers "in" or fails."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if error is not None:
            raise error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    records: list[Record] = []
    given = {"host": "localhost:8000"} | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": ("127.0.0.1", 1)}
    gate = Gate(app, settings, page=("/",), observe=records.append)
    asyncio.run(gate(scope, None, send))  # type: ignore[arg-type]
    body = b"".join(message.get("body", b"") for message in sent)
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, body.decode(), records[0]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("LocalHost.:8000", 200),
        ("localhost:9000", 200),  # through a tunnel
        ("127.0.0.1:8000", 200),
        ("127.1.2.3", 200),
        ("[::1]:8000", 200),
        ("[0:0:0:0:0:0:0:1]", 200),
        ("my.box", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("192.168.1.1", 403),
        ("0.0.0.0:8000", 403),
        ("[fe80::1]", 403),
        ("", 400),
        ("localhost:port", 400),
        ("localhost:8000:1", 400),
        ("user@localhost", 400),
        ("localhost/x", 400),
        ("::1", 400),
        ("local host", 400),
        ("löcalhost", 400),
    ],
)
def test_host(host: str, status: int) -> None:
    assert ask(ServeSettings(allowed_hosts=("My.box",)), host=host)[0] == status


def test_host_of_a_server_that_others_reach() -> None:
    settings = ServeSettings(host="0.0.0.0", keys=(KEY,))
    bearer = {"authorization": f"Bearer {KEY}"}
    assert ask(settings, host="192.168.1.5:8000", **bearer)[0] == 200  # no name, so none that was rebound
    assert ask(settings, host="evil.example", **bearer)[0] == 403
    one = dataclasses.replace(settings, host="192.168.1.5")
    assert ask(one, host="192.168.1.5", **bearer)[0] == 200
    assert ask(one, host="192.168.1.6", **bearer)[0] == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer   {KEY} "}, 200),
        ({"x_api_key": KEY}, 200),
        ({"x_api_key": "another-good-key"}, 200),
        ({"api_key": KEY}, 200),
        ({"authorization": "Bearer of-another-service", "x_api_key": KEY}, 200),
        ({"authorization": f"Bearer {KEY}", "x_api_key": "of-another-service"}, 200),
        ({"authorization": "Basic dTpw", "x_api_key": KEY}, 200),  # of a proxy between
        ({"authorization": "Bearer wrong", "x_api_key": "wrong"}, 401),
        ({}, 401),
        ({"authorization": KEY}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"authorization": f"Bearer {KEY[:-1]}"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer ké"}, 401),
        ({"x_api_key": ""}, 401),
    ],
)
def test_key(headers: dict[str, str], status: int) -> None:
    settings = ServeSettings(keys=(KEY, "another-good-key"))
    for path in ("/v1/models", "/metrics", "/panel", "/openapi.json", "/nothing"):
        found, told, body, _ = ask(settings, path, **headers)
        assert found == status
        assert status == 200 or (told["www-authenticate"] == "Bearer" and KEY not in body)
    assert ask(settings, "/health")[0] == ask(settings, "/")[0] == 200


def test_what_is_wrong_with_a_key_is_said() -> None:
    settings = ServeSettings(keys=(KEY,))
    for headers, said in (
        ({}, "an API key is needed: Authorization: Bearer KEY"),
        ({"authorization": KEY}, "with the word Bearer"),
        ({"authorization": f"Basic {KEY}"}, "with the word Bearer"),
        ({"authorization": "Bearer wrong"}, "the API key is wrong"),
        ({"authorization": KEY, "x_api_key": "wrong"}, "the API key is wrong"),
    ):
        assert said in ask(settings, **headers)[2]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refusal(400, "secret", code="unsupported_field", param="store"), ("unsupported_field", "store")),
        (Refusal(400, "secret", param="messages[0].content"), ("invalid_request_error", "messages[0].content")),
        (Refusal(415, "secret"), ("invalid_request_error", "")),
        (Refusal(503, "secret"), ("api_error", "")),
        (TemplateError("secret"), ("TemplateError", "")),
        (ValueError("secret"), ("internal", "")),
    ],
)
def test_why_a_request_was_refused_is_logged(
    error: Exception, said: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    record = ask(ServeSettings(), error=error)[3]
    assert (record.error, record.param) == said and "secret" not in caplog.text


def test_pages_of_other_sites() -> None:
    closed = ServeSettings()
    assert ask(closed, origin="http://localhost:8000")[0] == 200  # its own
    for origin in ("http://evil.example", "http://localhost:3000", "null", "http://localhost:8000.evil.example"):
        status, told, _, _ = ask(closed, origin=origin)
        assert status == 403 and "access-control-allow-origin" not in told
    opened = ServeSettings(cors_origins=("http://localhost:3000",))
    status, told, _, _ = ask(opened, origin="http://localhost:3000")
    assert (status, told["access-control-allow-origin"], told["vary"]) == (200, "http://localhost:3000", "origin")
    assert ask(opened, origin="http://localhost:3001")[0] == 403
    assert ask(opened)[1]["vary"] == "origin"
    assert (
        ask(ServeSettings(cors_origins=("*",)), origin="http://a.b")[1]["access-control-allow-origin"] == "http://a.b"
    )


def test_programs_made_of_pages() -> None:
    listed = ("app://obsidian.md", "vscode-webview://*", "null", "file://")
    for origin in ("app://obsidian.md", "vscode-webview://1a2b3c", "null", "file://"):
        assert ask(ServeSettings(), origin=origin)[0] == 403
        status, told, _, _ = ask(ServeSettings(cors_origins=listed), origin=origin)
        assert (status, told["access-control-allow-origin"]) == (200, origin)
    for origin in ("app://other", "vscode-file://vscode-app", "http://obsidian.md", "vscode-webview", ""):
        assert ask(ServeSettings(cors_origins=listed), origin=origin)[0] == 403


def test_preflight() -> None:
    settings = ServeSettings(cors_origins=("http://localhost:3000",), keys=(KEY,))
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization, content-type"}
    status, told, body, _ = ask(settings, method="OPTIONS", origin="http://localhost:3000", **asked)
    assert (status, body) == (204, "")
    assert told["access-control-allow-headers"] == "authorization, content-type"
    assert told["access-control-allow-origin"] == "http://localhost:3000"
    assert ask(settings, method="OPTIONS", origin="http://evil.example", **asked)[0] == 403
    assert ask(settings, method="OPTIONS", host="evil.example", origin="http://localhost:3000", **asked)[0] == 403
    assert ask(settings, method="OPTIONS", origin="http://localhost:3000")[0] == 401  # no preflight


def test_a_failure_tells_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    status, told, body, record = ask(ServeSettings(), error=ValueError("the secret prompt"))
    assert status == 500 and "secret" not in body and "Traceback" not in body
    assert told["x-request-id"] == record.id and record.error == "internal"
    assert "secret" not in caplog.text
    status, _, body, _ = ask(ServeSettings(), "/v1/messages", error=KernelError("no", "such", "luck"))
    assert status == 500 and '"type":"api_error"' in body
    status, _, body, _ = ask(ServeSettings(), error=RequestError("found", "limit", "remedy"))
    assert status == 400 and "found; limit; remedy" in body


@pytest.mark.parametrize("error", [Draining(), ResourceError("memory is full")])
def test_what_is_refused_for_now_has_no_traceback(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(ServeSettings(), error=error)[0] == 503
    assert "request failed" not in caplog.text


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost:8000/v1/models", "evil.example", 200),  # the target counts
        ("HTTP://127.0.0.1/v1/models", "localhost", 200),
        ("http://localhost", "localhost", 200),
        ("http://evil.example/v1/models", "localhost", 403),
        ("http://user@localhost/v1/models", "localhost", 400),
        ("http:///v1/models", "localhost", 400),
        ("http://localhos\u0167/v1/models", "localhost", 400),
    ],
)
def test_a_whole_address_as_target(target: str, host: str, status: int) -> None:
    found, _, _, record = ask(ServeSettings(), target, host=host)
    assert (found, record.path) == (status, "/" if target == "http://localhost" else "/v1/models")


def test_whose_page_asks_is_compared_with_the_target() -> None:
    target = "http://localhost:8000/v1/models"
    assert ask(ServeSettings(), target, host="evil.example", origin="http://localhost:8000")[0] == 200
    assert ask(ServeSettings(), target, host="evil.example", origin="http://evil.example")[0] == 403


def test_a_key_is_needed_whatever_form_the_target_has() -> None:
    assert ask(ServeSettings(keys=(KEY,)), "http://localhost/v1/models")[0] == 401
    assert ask(ServeSettings(keys=(KEY,)), "http://localhost/health")[0] == 200


def test_a_path_or_a_method_that_is_not_there() -> None:
    nowhere, remedy = HTTPException(404), "GET /openapi.json lists what there is"
    body = ask(ServeSettings(), "/nothing", error=nowhere)[2]
    assert f"there is nothing at '/nothing'; {remedy}" in body
    for path in ("/v1/chat/completions/", "/v1/models/"):
        body = ask(ServeSettings(), path, error=nowhere)[2]
        assert f"leave out the slash at its end; {remedy}" in body and "base URL" not in body
    for path in ("/chat/completions", "/v1/v1/messages", "/v1/v1/models/", "/models"):
        body = ask(ServeSettings(), path, error=nowhere)[2]
        assert "the base URL of OpenAI's clients ends in /v1, that of Anthropic's does not" in body and remedy in body
    error = HTTPException(405, headers={"Allow": "POST"})
    body = ask(ServeSettings(), "/v1/responses", error=error)[2]
    assert "'GET' is not for '/v1/responses'; POST is" in body and '"wrong_method"' in body
    error = HTTPException(405, headers={"Allow": "HEAD, GET"})
    status, told, body, _ = ask(ServeSettings(), "/health", "PUT", error=error)
    assert (status, told["Allow"]) == (405, "HEAD, GET") and "'PUT' is not for '/health'; GET is" in body


def test_headers() -> None:
    many = {f"x_{at}": "1" for at in range(Limits().headers)}
    assert ask(ServeSettings(), **many)[0] == 431
    told = ask(ServeSettings())[1]
    assert told["x-content-type-options"] == "nosniff"
    assert request_id("my-id.1") == "my-id.1"
    assert request_id("x" * 65).startswith("req_") and request_id("a b").startswith("req_")
    assert request_id("a\r\nset-cookie: b").startswith("req_") and request_id(None) != request_id(None)


def test_unknown_fields_in_a_header() -> None:
    assert unknown_header([]) == []
    assert unknown_header(["a", "b.c"]) == [(b"x-hetero-unknown-fields", b"a, b.c")]
    assert unknown_header(["a\r\nb", "é", "c" * 65, "d,e"]) == [(b"x-hetero-unknown-fields", b"...")]
    assert len(unknown_header([f"f{at}" for at in range(10_000)])[0][1]) < 200


@pytest.mark.parametrize(
    "changes",
    [
        {"port": 65536},
        {"port": -1},
        {"queue": -1},
        {"max_token_gap": 0.0},
        {"max_token_gap": float("nan")},
        {"cors_origins": ("localhost",)},
        {"max_token_gap": 500.0},
        {"cors_origins": ("http://*",)},
        {"cors_origins": ("https://*",)},
        {"cors_origins": ("app://a/b",)},
        {"cors_origins": ("javascript:alert(1)",)},
        {"cors_origins": ("http://a/b",)},
        {"allowed_hosts": ("a/b",)},
        {"keys": ("short",)},
        {"keys": ("with some spaces",)},
        {"keys": ("schlüssel-mit-umlaut",)},
        {"host": "0.0.0.0"},
        {"host": "::"},
        {"host": "192.168.1.5"},
        {"host": "my.box"},
        {"host": ""},
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        ServeSettings(**changes)
    assert caught.value.limit and caught.value.remedy


def test_settings_are_named_as_they_were_given() -> None:
    for changes, said in (
        ({"max_token_gap": 500.0}, "--max-token-gap 500; it is in seconds, .*; for 500 ms say 0.5"),
        ({"port": 70_000}, "--port 70000"),
        ({"queue": -1}, "--queue -1"),
        ({"cors_origins": ("localhost",)}, "--cors-origin 'localhost'"),
        ({"allowed_hosts": ("a/b",)}, "--allowed-host 'a/b'"),
        ({"aliases": ("gpt-4o", "")}, "--alias ''; a name has at least one character"),
        ({"keys": ("short",)}, "--api-key-file .* HETERO_API_KEY, has 5 characters"),
    ):
        with pytest.raises(RequestError, match=said):
            ServeSettings(**changes)  # type: ignore[arg-type]


def test_settings_that_are_taken() -> None:
    ServeSettings(max_token_gap=60.0)
    ServeSettings(host="0.0.0.0", insecure=True)
    ServeSettings(host="::1")
    assert ServeSettings(host="::", keys=(KEY,)).shown_host == "[::]"
    assert is_loopback("127.9.9.9") and is_loopback("localhost") and not is_loopback("localhost.evil.example")


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n\n  another-good-key \r\n")
    file.chmod(0o644)
    said: list[str] = []
    assert read_keys(str(file), {"HETERO_API_KEY": "of-environment"}, said.append) == (
        "of-environment",
        KEY,
        "another-good-key",
    )
    assert "chmod 600" in said[0]
    file.chmod(0o600)
    assert read_keys(str(file), {}, said.append) and len(said) == 1
    file.write_text("\n")
    with pytest.raises(RequestError, match="no key"):
        read_keys(str(file), {})
    assert read_keys(None, {"HETERO_API_KEY": ""}) == ()
