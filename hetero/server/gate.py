"""Who may pass: the address that was asked for, the page that asks, the key. And what everything that passes gets:
an id, a line in the log, an answer whatever happens inside."""

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from hetero.server.body import Gone, Message, Receive
from hetero.server.record import Record, log_failure, request_id
from hetero.server.refusal import Refusal, refusal_of
from hetero.server.settings import ServeSettings, is_loopback
from hetero.server.sse import Send, compact

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.\-_]+)(?::[0-9]{1,5})?")
ADDRESS = re.compile(r"https?://([^/?#]*)(/.*)?", re.DOTALL | re.IGNORECASE)
MISPLACED = (
    "/chat/completions",
    "/completions",
    "/models",
    "/responses",
    "/messages",
)  # where they are asked elsewhere
ANTHROPIC = "/v1/messages"
RECORD = "hetero.record"  # in a request's scope
LEFT = 499  # for the log and the metrics, as nginx has it: nobody was there to be answered
OPEN_PATHS = ("/health",)  # and the page's files: without them nobody could type a key
KEY_HEADERS = ("x-api-key", "api-key")  # Anthropic's clients, Azure's
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
ALLOWED_METHODS = b"GET, POST, OPTIONS"
ASKED = re.compile(r"[A-Za-z0-9\-, ]{0,1000}")


class Gate:
    """Wraps the application. `page`: paths that need no key besides /health. `observe` gets each finished record."""

    def __init__(self, app: App, settings: ServeSettings, page: tuple[str, ...], observe: Callable[[Record], None]):
        self._app, self._settings, self._observe = app, settings, observe
        self._open = frozenset((*OPEN_PATHS, *page))
        self._digests = [digest(key) for key in settings.keys]
        self._hosts = host_names(settings)
        self.answering = 0  # requests that are under way, but for /health
        self._any_address = settings.host in ("", "0.0.0.0", "::")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        assert scope["type"] == "http", "uvicorn is told to speak HTTP only"
        scope = origin_form(scope)
        headers = Headers(scope=scope)
        client = scope.get("client")
        id = request_id(headers.get("x-request-id"))
        record = Record(id, scope["method"], scope["path"], client[0] if client else "")
        scope[RECORD] = record
        speaks = ANTHROPIC if "anthropic-version" in headers else scope["path"]
        reply = Reply(send, record, self._cors(headers), speaks)
        counted = scope["path"] != "/health"
        self.answering += counted
        try:
            if not await self._preflight(scope, headers, reply):
                self._check(scope, headers)
                await self._app(scope, receive, reply.send)
        except Gone:
            record.ended = record.ended or "disconnected"
            record.status = record.status or LEFT
        except Exception as error:
            await self._failed(error, record, reply)
        finally:
            self.answering -= counted
            record.seconds = record.elapsed()
            record.log()
            self._observe(record)

    async def _failed(self, error: Exception, record: Record, reply: "Reply") -> None:
        refusal = unrouted(error, record) if isinstance(error, HTTPException) else refusal_of(error)
        record.error = refusal.code or (refusal.kind if isinstance(error, Refusal) else type(error).__name__)
        record.param = refusal.param or ""
        if refusal.status == 500:
            log_failure(error, record.id)
        if reply.begun:
            record.status = refusal.status  # for the log; the client has had its 200
        else:
            await reply.refuse(refusal)

    def _check(self, scope: Scope, headers: Headers) -> None:
        limits, size = self._settings.limits, sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > limits.headers or size > limits.header_bytes:
            found = f"the request has {len(scope['headers'])} headers of {size:,} bytes"
            raise Refusal(431, f"{found}; at most {limits.headers} of {limits.header_bytes:,}")
        if "content-length" in headers and "transfer-encoding" in headers:  # one of them hides a second request
            raise Refusal(400, "there are content-length and transfer-encoding", headers={"connection": "close"})
        self._check_host(headers)
        self._check_origin(headers)
        if scope["path"] not in self._open:
            self._check_key(headers)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site can make a browser call this address under its own name (DNS rebinding): only names
        that mean this server are answered."""
        given = headers.get("host", "")
        match = AUTHORITY.fullmatch(given)
        if match is None:
            raise Refusal(400, f"the Host header {given[:100]!r} is no host")
        if not self._is_mine(match[1].lower().removesuffix(".")):
            mine = ", ".join(sorted(self._hosts))
            message = f"the Host header names {given[:100]!r}; this server is called {mine}; --allowed-host adds a name"
            raise Refusal(403, message, code="wrong_host")

    def _is_mine(self, name: str) -> bool:
        if name in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self._any_address or (address.is_loopback and is_loopback(self._settings.host))

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or self._allowed(origin):
            return
        if origin.partition("://")[2].lower() == headers.get("host", "").lower():
            return
        message = f"a page of {origin[:100]!r} may not use this server; --cors-origin adds it"
        raise Refusal(403, message, code="cross_origin")

    def _check_key(self, headers: Headers) -> None:
        """In time that does not tell how much of a key was right."""
        if not self._digests:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = scheme.lower() == "bearer"
        given = [*([token.strip()] if bearer else []), *(headers.get(name, "") for name in KEY_HEADERS)]
        found = [digest(one) for one in given if one]
        # Lists: each is compared. A client may send a key of another service's beside this one's.
        if not any([hmac.compare_digest(one, mine) for one in found for mine in self._digests]):
            message = "the API key is wrong" if found else "an API key is needed: Authorization: Bearer KEY"
            if scheme and not bearer and not found:
                message = "the header Authorization has no key: it says Authorization: Bearer KEY, with the word Bearer"
            raise Refusal(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def _allowed(self, origin: str | None) -> bool:
        if origin is None:
            return False
        scheme = "".join(origin.partition("://")[:2])
        return not {"*", origin, f"{scheme}*"}.isdisjoint(self._settings.cors_origins)

    def _cors(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        if not self._settings.cors_origins:
            return []
        vary = [(b"vary", b"origin")]
        origin = headers.get("origin")
        if origin is None or not self._allowed(origin):
            return vary
        exposed = b"x-request-id, x-hetero-unknown-fields, retry-after"
        return [*vary, (b"access-control-allow-origin", origin.encode()), (b"access-control-expose-headers", exposed)]

    async def _preflight(self, scope: Scope, headers: Headers, reply: "Reply") -> bool:
        """Answers a browser that asks whether a page of another site may call; it asks without the key."""
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            return False
        self._check_host(headers)
        if not self._allowed(headers.get("origin")):
            message = "pages of other sites may not use this server; --cors-origin adds one"
            raise Refusal(403, message, code="cross_origin")
        wanted = headers.get("access-control-request-headers", "")
        found = [
            (b"access-control-allow-methods", ALLOWED_METHODS),
            (b"access-control-allow-headers", wanted.encode() if ASKED.fullmatch(wanted) else b""),
            (b"access-control-max-age", b"600"),
        ]
        await reply.send({"type": "http.response.start", "status": 204, "headers": found})
        await reply.send({"type": "http.response.body", "body": b""})
        return True


class Reply:
    """`send` of one request: adds the headers that every response has, and notes the status. `speaks`: a path of the
    interface whose errors the client reads; /v1/models belongs to both."""

    def __init__(self, send: Send, record: Record, headers: list[tuple[bytes, bytes]], speaks: str):
        self._send, self._record, self._speaks = send, record, speaks
        id = record.id.encode()
        self._headers = [*HEADERS, (b"x-request-id", id), (b"request-id", id), *headers]  # OpenAI's, Anthropic's
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self._record.status = message["status"]
            unknown = unknown_header(self._record.unknown)
            message["headers"] = [*message.get("headers", []), *self._headers, *unknown]
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        body = compact(refusal.document(self._speaks, self._record.id)).encode()
        headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def origin_form(scope: Scope) -> Scope:
    """Of a request whose target is a whole address, as clients ask a proxy: that address is asked for, whatever the
    Host header says (RFC 9112 3.2.2)."""
    match = ADDRESS.fullmatch(scope["path"])
    if match is None:
        return scope
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    host = match[1].encode("latin-1", "replace")
    return {**scope, "path": match[2] or "/", "headers": [(b"host", host), *others]}


def unrouted(error: HTTPException, record: Record) -> Refusal:
    path, headers = record.path[:100], dict(error.headers or {})
    if error.status_code == 404:
        remedy, bare = "GET /openapi.json lists what there is", path.rstrip("/")
        if path != bare:
            remedy = "leave out the slash at its end; " + remedy
        if bare.endswith(MISPLACED) and bare not in [f"/v1{one}" for one in MISPLACED]:
            remedy = "the base URL of OpenAI's clients ends in /v1, that of Anthropic's does not; " + remedy
        return Refusal(404, f"there is nothing at {path!r}; {remedy}", code="unknown_url")
    allowed = " or ".join(sorted(set(headers.get("Allow", "").split(", ")) - {"HEAD", ""}))
    message = f"{record.method[:20]!r} is not for {path!r}" + (f"; {allowed} is" if allowed else "")
    return Refusal(error.status_code, message, code="wrong_method", headers=headers)


def unknown_header(names: list[str]) -> list[tuple[bytes, bytes]]:
    safe = [name for name in names if re.fullmatch(r"[\x21-\x2b\x2d-\x7e]{1,64}(: not offered)?", name)][:16]
    shown = ", ".join([*safe, *(["..."] if len(safe) < len(names) else [])])
    return [(b"x-hetero-unknown-fields", shown.encode())] if names else []


def digest(key: str) -> bytes:
    """Of one length whatever the key's."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def host_names(settings: ServeSettings) -> frozenset[str]:
    names = {"localhost", settings.host.lower(), settings.shown_host.lower(), *map(str.lower, settings.allowed_hosts)}
    if not is_loopback(settings.host):
        names.add(socket.gethostname().lower())
    return frozenset(names - {"", "0.0.0.0", "::", "[::]"})
