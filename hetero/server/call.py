"""One request on its way through an endpoint: its body, its answer, and what is noted of it."""

import secrets
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from hetero.sampler import Sampling
from hetero.server.ask import Ask
from hetero.server.exchange import Exchange
from hetero.server.fields import Form, check_refused
from hetero.server.gate import RECORD
from hetero.server.record import LOGGER, Record
from hetero.server.service import Service
from hetero.server.settings import Limits
from hetero.server.sse import Answer, EventStream, collected, compact

F = TypeVar("F", bound=Form)


class Asking(Protocol):
    """A form of what is to be generated."""

    def ask(self, defaults: Sampling, limits: Limits) -> Ask: ...


class Call:
    def __init__(self, request: Request):
        self.request = request
        self.service: Service = request.app.state.service
        self.record: Record = request.scope[RECORD]

    async def form(self, kind: type[F]) -> F:
        """The body's fields. Refusal: not JSON, wrong, not implemented, or of another model."""
        document = await self.service.bodies.read(self.request.headers, self.request.receive, self.service.apart)
        form = kind.read(document)
        self.record.unknown = form.unknown()
        check_refused(form)
        self.service.check_model(getattr(form, "model", None))
        return form

    async def begin(self, form: Asking) -> tuple[Ask, Exchange]:
        """What is asked for, and the sequences that will answer it. Refusal, or what the scheduler raises."""
        settings = self.service.settings
        ask = form.ask(settings.sampling, settings.limits)
        if settings.log_prompts:
            asked = ask.messages if ask.messages is not None else ask.texts
            LOGGER.info("prompt", extra={"fields": {"id": self.record.id, "prompt": compact(asked)}})
        return ask, await self.service.begin(ask, self.record)

    async def answer(self, exchange: Exchange, answer: Answer, stream: bool | None) -> Response:
        """A stream, or one document when everything is there."""
        if stream:
            return EventStream(exchange, answer, self.service.settings.limits, self.record)
        deltas = await collected(exchange, self.request.receive)
        return Response(answer.document(deltas), headers=FRESH, media_type="application/json")


FRESH = {"cache-control": "no-store"}


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"


def document(content: Any, status: int = 200) -> Response:
    return Response(compact(content).encode(), status, FRESH, media_type="application/json")
