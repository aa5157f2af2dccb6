"""Server-sent events: what an answer sends while it is made, and what keeps the connection alive meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from starlette.responses import Response

from hetero.server.body import Gone, Message, Receive
from hetero.server.choice import Delta, Failed
from hetero.server.exchange import Exchange
from hetero.server.record import Record
from hetero.server.refusal import Refusal, refusal_of
from hetero.server.settings import Limits

Send = Callable[[Message], Awaitable[None]]
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx, where it stands between, passes events on at once
]
KEEP_ALIVE = b": keep-alive\n\n"


class Answer(Protocol):
    """An interface's own words for what an exchange gives."""

    def opening(self) -> list[bytes]: ...
    def push(self, index: int, delta: Delta) -> list[bytes]: ...
    def closing(self) -> list[bytes]: ...
    def failed(self, refusal: Refusal) -> list[bytes]: ...
    def document(self, deltas: list[tuple[int, Delta]]) -> bytes: ...


def event(document: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {compact(document)}\n\n".encode()


def compact(document: Any) -> str:
    """One line of ASCII: safe in a stream of lines, and for text with lone surrogates."""
    return json.dumps(document, separators=(",", ":"))


@asynccontextmanager
async def watched(exchange: Exchange, receive: Receive) -> AsyncIterator[None]:
    """While this lasts, a client that goes away ends the exchange; afterwards nothing of it runs any more."""

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        exchange.leave()

    watcher = asyncio.create_task(leave())
    try:
        yield
    finally:
        watcher.cancel()
        exchange.close()


class EventStream(Response):
    """Sends events until the exchange ends. A failure in the middle is an event of its own."""

    def __init__(self, exchange: Exchange, answer: Answer, limits: Limits, record: Record):
        self._exchange, self._answer, self._limits, self._record = exchange, answer, limits, record
        self.background = None

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        async with watched(self._exchange, receive):
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": HEADERS})
            await self._part(send, self._answer.opening())
            while not self._exchange.finished:
                await self._step(send)
            await self._part(send, self._answer.closing())
            await self._send(send, {"type": "http.response.body", "body": b""})

    async def _step(self, send: Send) -> None:
        try:
            deltas = await self._exchange.next(self._limits.keep_alive_seconds)
            parts = [part for index, delta in deltas or [] for part in self._answer.push(index, checked(delta))]
        except Gone:
            raise
        except Exception as error:
            await self._part(send, self._answer.failed(refusal_of(error)))
            await self._send(send, {"type": "http.response.body", "body": b""})
            raise
        await self._part(send, [KEEP_ALIVE] if deltas is None else parts)

    async def _part(self, send: Send, parts: list[bytes]) -> None:
        if parts:
            await self._send(send, {"type": "http.response.body", "body": b"".join(parts), "more_body": True})

    async def _send(self, send: Send, message: Message) -> None:
        """A client that takes nothing for too long has gone away."""
        try:
            async with asyncio.timeout(self._limits.write_seconds):
                await send(message)
        except TimeoutError:
            self._record.ended = "stalled"
            raise Gone from None


async def collected(exchange: Exchange, receive: Receive) -> list[tuple[int, Delta]]:
    """Everything, when it is there. Raises what the model failed with."""
    found: list[tuple[int, Delta]] = []
    async with watched(exchange, receive):
        while not exchange.finished:
            found += [(index, checked(delta)) for index, delta in await exchange.next() or []]
    return found


def checked(delta: Delta) -> Delta:
    """Raises what the model failed with."""
    if isinstance(delta, Failed):
        raise delta.error
    return delta
