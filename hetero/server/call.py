"""One request on its way through an endpoint: its body, its answer, and what is noted of it."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from hetero.sampler import Sampling
from hetero.server.ask import Ask
from hetero.server.body import Gone, Receive
from hetero.server.exchange import Exchange
from hetero.server.fields import Form, check_refused
from hetero.server.gate import RECORD
from hetero.server.prompts import prepare, prompts_of
from hetero.server.record import LOGGER, Record
from hetero.server.service import Service
from hetero.server.settings import Limits
from hetero.server.sse import Answer, EventStream, collected, compact

F = TypeVar("F", bound=Form)
T = TypeVar("T")
SHORT = 1000  # tokens of an answer that are written down in milliseconds


class Asking(Protocol):
    """A form of an endpoint that generates."""

    stream: bool | None

    def ask(self, defaults: Sampling, limits: Limits) -> Ask: ...


A = TypeVar("A", bound=Asking)


class Call:
    def __init__(self, request: Request):
        self.request = request
        self.service: Service = request.app.state.service
        self.record: Record = request.scope[RECORD]

    async def form(self, kind: type[F]) -> F:
        """The body's fields. Refusal: not JSON, wrong, not implemented, or of another model."""
        return await self._read(lambda document: self._form(kind, document))

    async def asked(self, kind: type[A]) -> tuple[A, Ask]:
        """As `form`, and what it asks for."""
        settings = self.service.settings

        def made(document: Any) -> tuple[A, Ask]:
            form: Any = self._form(kind, document)  # type: ignore[type-var]  # a form that asks is a form
            return form, form.ask(settings.sampling, settings.limits)

        return await self._read(made)

    async def _read(self, made: Callable[[Any], T]) -> T:
        return await self.service.bodies.read(self.request.headers, self.request.receive, self.apart, made)

    def _form(self, kind: type[F], document: Any) -> F:
        """In any thread."""
        form = kind.read(document)
        self.record.unknown = form.unknown()
        check_refused(form)
        self.service.check_model(getattr(form, "model", None))
        return form

    async def apart(self, work: Callable[[], T]) -> T:
        """As `Service.apart`; Gone when the client leaves meanwhile: what was not begun then is not done."""
        doing = asyncio.create_task(self.service.apart(work))
        leaving = asyncio.create_task(left(self.request.receive))
        try:
            await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise Gone
            return doing.result()
        finally:
            doing.cancel()
            leaving.cancel()

    async def begin(self, ask: Ask) -> Exchange:
        """An exchange whose first sequence waits or runs. Refusal, or what `Scheduler.submit` raises."""
        if self.service.settings.log_prompts:
            asked = ask.messages if ask.messages is not None else ask.texts
            LOGGER.info("prompt", extra={"fields": {"id": self.record.id, "prompt": compact(asked)}})
        loaded = self.service.loaded
        prompts = await self.apart(lambda: prepare(ask, loaded))
        exchange = Exchange(loaded.scheduler, loaded.tokenizer, prompts, ask.choices, self.record)
        exchange.begin()
        return exchange

    async def encoded(self, ask: Ask) -> list[int]:
        """Token ids of the one prompt, however long it is."""
        loaded = self.service.loaded
        (prompt,) = await self.apart(lambda: prompts_of(ask, loaded))
        return list(prompt.ids)

    async def answer(self, exchange: Exchange, answer: Answer, stream: bool | None) -> Response:
        """A stream, or one document when everything is there."""
        if stream:
            return EventStream(exchange, answer, self.service.settings.limits, self.record)
        deltas = await collected(exchange, self.request.receive)
        short = exchange.usage.generated_tokens <= SHORT
        content = answer.document(deltas) if short else await self.service.aside(lambda: answer.document(deltas))
        return Response(content, headers=FRESH, media_type="application/json")


async def left(receive: Receive) -> None:
    """Waits until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


FRESH = {"cache-control": "no-store"}


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"


def document(content: Any, status: int = 200) -> Response:
    return Response(compact(content).encode(), status, FRESH, media_type="application/json")
