"""A scheduler that recites: stands in for hetero.scheduler where a server is tested without a model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hetero.errors import HeteroError
from hetero.request import Ended, Event, Generated, Read, Request, Started
from hetero.scheduler import Snapshot, Ticket
from hetero.server.loaded import Loaded
from hetero.server.service import Service
from hetero.server.settings import ServeSettings
from hetero.telemetry import Telemetry
from hetero.tool_format import NAMED
from tests.fake_engine import FakeTemplate, FakeTokenizer


class Characters(FakeTokenizer):
    """A token is a character."""

    def least_tokens(self, text: str) -> int:
        return len(text) // 2  # so that the exact count is seen, too

    def token_bytes(self, id: int) -> bytes:
        return chr(id).encode()

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(map(chr, ids))


class Template(FakeTemplate):
    tool_format = NAMED

    def render(self, messages: Any, *, thinking: bool | None = None, **extra: Any) -> str:
        return super().render(messages, thinking=thinking)

    def encode(self, messages: Any, *, thinking: bool | None = None, **extra: Any) -> list[int]:
        return super().encode(messages, thinking=thinking)


@dataclass
class FakeScheduler:
    """Each request gets the next answer: text, an error, or None for one that never ends. `submit` may fail instead."""

    answers: list[str | HeteroError | None]
    cached: int = 0
    refuses: HeteroError | None = None
    requests: list[Request] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    failed: bool = False
    before: Callable[[Request], None] = lambda request: None

    def submit(self, request: Request) -> Ticket:
        if self.refuses is not None:
            raise self.refuses
        self.before(request)
        number = len(self.requests)
        self.requests.append(request)
        telemetry = Telemetry(cached_tokens=self.cached, prompt_tokens=len(request.ids) - self.cached)
        for event in self._events(self.answers.pop(0), request, telemetry):
            request.listener(event)

        def cancel() -> None:
            self.cancelled.append(number)
            request.listener(Ended("cancelled", None, telemetry))

        return Ticket(number, cancel)

    def _events(self, answer: str | HeteroError | None, request: Request, telemetry: Telemetry) -> Iterable[Event]:
        yield Started(self.cached)
        yield Read(len(request.ids), len(request.ids))
        most = request.sampling.max_tokens or 1000
        text = answer if isinstance(answer, str) else ""
        for character in text[:most]:
            top = ((ord(character), -0.5), (ord("x"), -2.0))[: request.logprobs]
            yield Generated(ord(character), -0.5, top)
        if isinstance(answer, HeteroError):
            yield Ended("failed", answer, telemetry)
        elif answer is not None:
            yield Ended("length" if len(text) >= most else "stop", None, telemetry)

    def snapshot(self) -> Snapshot:
        return Snapshot()

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


def fake_service(scheduler: FakeScheduler, settings: ServeSettings | None = None, context: int = 200) -> Service:
    service = Service("fake", settings or ServeSettings(), created=0)
    service.ready(Loaded(scheduler, Characters(), Template(), context, 2, "a fake"))  # type: ignore[arg-type]  # fakes have what is used
    return service
