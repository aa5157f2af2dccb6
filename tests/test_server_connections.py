"""Clients of the socket that are slow, greedy, or break off: how long the server bears with them."""

import errno
import io
import json
import logging
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from hetero.errors import ResourceError
from hetero.server.app import create_app
from hetero.server.record import ToStderr
from hetero.server.run import Server, listening
from hetero.server.settings import Limits, ServeSettings
from tests.fake_scheduler import FakeScheduler, fake_service

LIMITS = Limits(
    header_seconds=0.3, body_seconds=0.3, write_seconds=0.5, header_bytes=4096, connections=20, keep_alive_seconds=0.05
)
PATIENCE = 20.0  # seconds for what takes less than one, on a machine that does much else

Connect = Callable[[], socket.socket]


@pytest.fixture(scope="module")
def scheduler() -> FakeScheduler:
    return FakeScheduler([])


@contextmanager
def running(scheduler: FakeScheduler, limits: Limits = LIMITS) -> Iterator[Server]:
    settings = ServeSettings(port=0, limits=limits)
    service = fake_service(scheduler, settings, context=10_000_000)
    listener = listening(settings)
    server = Server(service, create_app(service, settings), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(scheduler: FakeScheduler) -> Iterator[Server]:
    with running(scheduler) as one:
        yield one


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    made: list[socket.socket] = []
    address = server.servers[0].sockets[0].getsockname()

    def new() -> socket.socket:
        made.append(socket.create_connection(address, PATIENCE))
        return made[-1]

    yield new
    for one in made:
        one.close()


def until_closed(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def post(body: bytes, length: int | None = None, *more: str, path: str = "/v1/chat/completions") -> bytes:
    size = len(body) if length is None else length
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*head, f"Content-Length: {size}", *more, "", ""]).encode() + body


def chat(**fields: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "Hi"}], **fields}).encode()


def answers(connection: socket.socket) -> bytes:
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found = b""
    while not found.endswith(b"}"):
        part = connection.recv(65536)
        found += part
        if not part:
            break
    return found


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("no-such-host.invalid", "no-such-host.invalid port 0; no address has this name; .* --host"),
        ("a..b", "no address has this name"),
        ("x" * 64, "no address has this name"),
        ("192.0.2.1", "Cannot assign requested address; --host is an address of this machine"),
    ],
)
def test_an_address_that_cannot_be_had(host: str, said: str) -> None:
    with pytest.raises(ResourceError, match=said):
        listening(ServeSettings(host=host, port=0, insecure=True))


def test_a_port_that_cannot_be_had(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.servers[0].sockets[0].getsockname()[1]
    with pytest.raises(ResourceError, match=f"127.0.0.1 port {port}; Address already in use; .* another --port"):
        listening(ServeSettings(port=port))

    def forbidden(self: socket.socket, where: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", forbidden)
    with pytest.raises(ResourceError, match="port 80; Permission denied; choose a --port from 1024 on"):
        listening(ServeSettings(port=80))


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_head_that_does_not_come(connect: Connect, sent: bytes) -> None:
    one = connect()
    one.sendall(sent)
    assert until_closed(one) == b""
    assert b"200 OK" in answers(connect())


def test_a_head_that_drips(connect: Connect) -> None:
    one = connect()
    ended = time.monotonic() + PATIENCE
    try:
        for byte in b"GET /health HTTP/1.1\r\n" + b"X: " + b"y" * 10_000:
            one.sendall(bytes([byte]))
            time.sleep(0.02)
            assert time.monotonic() < ended
    except (BrokenPipeError, ConnectionResetError):
        return
    pytest.fail("it was let drip")


def test_a_second_head_that_does_not_come(connect: Connect) -> None:
    one = connect()
    assert b"200 OK" in answers(one)
    one.sendall(b"GET /hea")
    assert until_closed(one) == b""


def test_between_requests_a_client_may_wait_longer_than_in_the_middle_of_one(connect: Connect) -> None:
    one = connect()
    assert b"200 OK" in answers(one)
    time.sleep(3 * LIMITS.header_seconds)
    assert b"200 OK" in answers(one)


def test_a_body_that_does_not_come(connect: Connect) -> None:
    one = connect()
    one.sendall(post(b'{"messages": ', 1000))
    assert b" 408 " in until_closed(one)


def test_a_body_that_nobody_reads(connect: Connect) -> None:
    """It was refused by its length; what follows is not waited for."""
    one = connect()
    one.sendall(post(b"x" * 1000, 1 << 40))
    assert b" 413 " in until_closed(one)
    two = connect()
    two.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
    assert b" 404 " in until_closed(two)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 50 + b"\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 10_000 + b"\r\n\r\n", b"431"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 101 + b"\r\n", b"431"),
        (b"DELETE /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /%2e%2e/page_files.py HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /v1/models/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (post(b"{}", None, "Transfer-Encoding: chunked"), b"400"),
        (post(b"\xff\xfe"), b"400"),
    ],
)
def test_requests_that_are_none(connect: Connect, sent: bytes, status: bytes) -> None:
    one = connect()
    one.sendall(sent)
    found = one.recv(65536)
    assert found.split(b" ", 2)[1] == status and b"Traceback" not in found and b"/tests" not in found


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 50, 400, "begins with http://"),
        (b"what the capital of France is\r\n\r\n", 400, "illegal request line"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 5000, 431, "too long"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400, "Host"),
        (post(b"", 5) + b"{}   what the capital of France is\r\n\r\n", 400, "illegal request line"),
        (post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: gzip"), 400, "Only Transfer-Encoding"),
        (post(b"zz\r\n").replace(b"Content-Length: 4", b"Transfer-Encoding: chunked"), 400, "illegal chunk"),
    ],
)
def test_what_is_no_http_is_refused_and_logged(
    connect: Connect, caplog: pytest.LogCaptureFixture, sent: bytes, status: int, said: str
) -> None:
    with caplog.at_level(logging.INFO):
        one = connect()
        one.sendall(sent)
        head, _, body = until_closed(one).rpartition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    found = re.findall(rb"\r\nx-request-id: (\S+)", head)
    assert f" {status} ".encode() in head and said in error["message"] and found
    (line,) = (record for record in caplog.records if "no HTTP from 127.0.0.1" in record.getMessage())
    assert said in line.getMessage() and getattr(line, "fields", {})["id"] == found[-1].decode()
    assert "capital" not in error["message"] + line.getMessage()


def test_a_target_as_a_proxy_is_asked(connect: Connect) -> None:
    one = connect()
    one.sendall(b"GET http://localhost:8000/health HTTP/1.1\r\nHost: localhost:8000\r\n\r\n")
    assert b"200 OK" in one.recv(65536)


def test_an_upgrade_is_not_made(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    one = connect()
    one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert b"200 OK" in one.recv(65536) and "uvicorn" not in caplog.text


def test_too_many_connections(connect: Connect) -> None:
    held = [connect() for _ in range(LIMITS.connections)]
    time.sleep(0.1)
    one = connect()
    assert b" 503 " in until_closed(one)
    for connection in held:
        connection.close()
    deadline = time.monotonic() + PATIENCE
    while b"200 OK" not in answers(connect()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["close", "shutdown", "reset"])
def test_a_client_that_breaks_off(connect: Connect, scheduler: FakeScheduler, stream: bool, how: str) -> None:
    scheduler.answers = [None]
    scheduler.cancelled.clear()
    one = connect()
    one.sendall(post(chat(stream=stream)))
    if stream:
        assert b"200 OK" in one.recv(65536)
    else:
        time.sleep(0.1)
    if how == "reset":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if how == "shutdown":
        one.shutdown(socket.SHUT_WR)
    else:
        one.close()
    deadline = time.monotonic() + PATIENCE
    while not scheduler.cancelled:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_reads_nothing(connect: Connect, server: Server, scheduler: FakeScheduler, stream: bool) -> None:
    """Its answer is larger than every buffer between. It is let go, whether the answer was complete or not."""
    scheduler.answers = ["x" * 100_000 if stream else "x"]
    echoed = json.dumps({"prompt": "x" * 6_000_000, "echo": True}).encode()
    with closing(socket.socket()) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(connect().getpeername())
        mine = one.getsockname()
        one.sendall(post(chat(stream=True)) if stream else post(echoed, path="/v1/completions"))
        deadline = time.monotonic() + PATIENCE
        served = False
        while not served or any(other.client == mine for other in server.server_state.connections):
            served = served or not scheduler.answers
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert b"200 OK" in answers(connect())


def test_a_body_that_does_not_come_holds_no_drain() -> None:
    """What runs is waited for; a request that is not complete was none yet."""
    scheduler = FakeScheduler([None])
    with running(scheduler, Limits(body_seconds=1000.0)) as server:
        address = server.servers[0].sockets[0].getsockname()
        runs, half, late = (socket.create_connection(address, PATIENCE) for _ in range(3))
        with closing(runs), closing(half), closing(late):
            half.sendall(post(b'{"messages": ', 1000))
            runs.sendall(post(chat(stream=True)))
            assert b" 200 " in runs.recv(65536)
            server.servers[0].get_loop().call_soon_threadsafe(server._signalled, signal.SIGTERM)
            refused = until_closed(half)
            assert b" 503 " in refused and b'"draining"' in refused
            late.sendall(post(b"", 1000))
            assert b" 503 " in until_closed(late)
            assert not server.should_exit
            runs.close()
            deadline = time.monotonic() + PATIENCE
            while not server.should_exit:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_a_client_that_takes_little_now_and_then(connect: Connect, server: Server, scheduler: FakeScheduler) -> None:
    """The kernel sees it take something; its connection was closed long ago."""
    scheduler.answers = ["x"]
    echoed = json.dumps({"prompt": "x" * 6_000_000, "echo": True}).encode()
    with closing(socket.socket()) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(connect().getpeername())
        mine = one.getsockname()
        one.sendall(post(echoed, None, "Connection: close", path="/v1/completions"))
        deadline = time.monotonic() + PATIENCE
        taken, served = 0, False
        while not served or any(other.client == mine for other in server.server_state.connections):
            served = served or not scheduler.answers
            taken += len(one.recv(3000))
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert taken < 6_000_000
    assert b"200 OK" in answers(connect())


def test_the_log_goes_to_the_stderr_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [io.StringIO(), io.StringIO()]
    handler = ToStderr()
    for stream in said:
        monkeypatch.setattr(sys, "stderr", stream)
        handler.emit(logging.LogRecord("hetero.server", logging.INFO, "", 0, "hello", (), None))
        said[0].close()
    assert said[1].getvalue() == "hello\n"
