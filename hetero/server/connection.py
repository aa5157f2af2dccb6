"""One connection: uvicorn's HTTP/1.1, and how long a client may take to say what it wants."""

import asyncio
import socket
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from hetero.server.record import LOGGER, request_id
from hetero.server.refusal import Refusal
from hetero.server.settings import Limits
from hetero.server.sse import compact

TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
TLS_HANDSHAKE = b"\x16"  # the first byte of a client that was told https://


class Connection(H11Protocol):
    """uvicorn limits the time between requests, not that of a request's head, nor of a body nobody reads any more."""

    def __init__(self, limits: Limits, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._first = b""
        self._closing = False  # at the last look at it
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own says so
        super().connection_made(transport)
        # Whoever takes nothing that was sent is let go by the kernel, also after an answer's end: close() would wait.
        milliseconds = round(self._limits.write_seconds * 1000)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if len(self.connections) > self._limits.connections:
            transport.write(TOO_MANY)
            transport.close()
        else:
            self._watch()
        self._look = self.loop.call_later(self._limits.write_seconds, self._look_again)

    def _look_again(self) -> None:
        """What is closed and still not gone then has a client that takes a little now and then: it is let go."""
        if self._closing:
            self.transport.abort()
            return
        self._closing = self.transport.is_closing()
        self._look = self.loop.call_later(self._limits.write_seconds, self._look_again)

    def data_received(self, data: bytes) -> None:
        self._first = self._first or data[:1]
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Of what is no HTTP: answered and logged as other requests are. Nothing of what was sent is in it: it may be
        the rest of a body whose length was wrong."""
        error = sys.exception()
        what = str(error).partition(":")[0] if isinstance(error, h11.RemoteProtocolError) else msg
        status = 431 if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431 else 400
        if self._first == TLS_HANDSHAKE:
            what = "it speaks TLS, which this server does not; its address begins with http://"
        id = request_id(None)
        LOGGER.info(
            f"no HTTP from {self.client[0] if self.client else 'somebody'}: {what}", extra={"fields": {"id": id}}
        )
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever reads this request's body or answers it: nobody is there
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(Refusal(status, f"this is no HTTP request: {what}"), id)
            self.transport.close()
        else:
            self.transport.abort()

    def _refuse(self, refusal: Refusal, id: str) -> None:
        body = compact(refusal.document("", id)).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        reason = HTTPStatus(refusal.status).phrase
        head = h11.Response(status_code=refusal.status, headers=[*headers, ("x-request-id", id)], reason=reason)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _should_upgrade(self) -> bool:
        """Who wants to change to WebSocket or HTTP/2 is answered in HTTP/1.1, as RFC 9110 7.8 has it."""
        return False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """A head that is not complete, or what follows an answer that did not wait for the body's end."""
        conn = self.conn
        unread = conn.our_state is h11.DONE and conn.their_state is h11.SEND_BODY
        between = self.timeout_keep_alive_task is not None and not conn.trailing_data[0]  # requests: uvicorn's affair
        if not unread and (between or conn.their_state is not h11.IDLE):
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._limits.header_seconds, self.transport.abort)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
