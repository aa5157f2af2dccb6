"""The model behind the endpoints: loading, ready or draining; and threads for what would hold up the event loop."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from hetero.load_state import Snapshot
from hetero.server.body import Bodies
from hetero.server.loaded import Loaded
from hetero.server.refusal import Refusal
from hetero.server.settings import ServeSettings
from placement.document import short

T = TypeVar("T")
State = Literal["loading", "ready", "draining"]
PREPARING = 2  # threads that render and tokenize: more would only take the model's cores


class Service:
    """`name` is what clients call the model. Used from the event loop, but for `stage` and `ready`: the loader's."""

    def __init__(self, name: str, settings: ServeSettings, created: int):
        self.name, self.settings, self.created = name, settings, created
        self.state: State = "loading"
        self.stage: dict[str, Any] = {"stage": "opening", "done": 0, "total": 0}  # of loading
        self.bodies = Bodies(settings.limits)
        self._loaded: Loaded | None = None
        self._threads = ThreadPoolExecutor(PREPARING, thread_name_prefix="prepare")
        self._waiting = 0

    @property
    def loaded(self) -> Loaded:
        """Refusal (503) while there is none."""
        if self._loaded is None:
            message = "the model is still being loaded; /health says when it is there"
            raise Refusal(503, message, code="loading", headers={"retry-after": "5"})
        return self._loaded

    @property
    def title(self) -> str:
        return self._loaded.title if self._loaded else self.name

    @property
    def context(self) -> int | None:
        return self._loaded.context if self._loaded else None

    @property
    def health(self) -> State | Literal["failed"]:
        """failed: the model can compute nothing any more; only a new start helps."""
        failed = self._loaded is not None and self._loaded.scheduler.failed
        return "failed" if failed and self.state == "ready" else self.state

    def snapshot(self) -> Snapshot | None:
        return self._loaded.scheduler.snapshot() if self._loaded else None

    def ready(self, loaded: Loaded) -> None:
        self._loaded = loaded
        if self.state == "loading":
            self.state = "ready"

    def drain(self) -> None:
        self.state = "draining"
        self.bodies.drain()
        if self._loaded is not None:
            self._loaded.scheduler.drain()

    def check_model(self, name: str | None) -> None:
        if name is not None and name not in (self.name, *self.settings.aliases):
            message = f"there is no model {short(name)}; this server has {self.name}; GET /v1/models lists it"
            raise Refusal(404, message, code="model_not_found", param="model")

    async def apart(self, work: Callable[[], T]) -> T:
        """Off the event loop, in one of few threads; a queue for them that is too long is refused (429)."""
        if self._waiting > self.settings.queue + PREPARING:
            message = f"{self._waiting} requests wait to be read; no more may; try again later"
            raise Refusal(429, message, code="queue_full", headers={"retry-after": "1"})
        self._waiting += 1
        try:
            return await self.aside(work)
        finally:
            self._waiting -= 1

    async def aside(self, work: Callable[[], T]) -> T:
        """As `apart`, and never refused: for the end of what was begun."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._loaded is not None:
            self._loaded.scheduler.close()


def name_of(path: str) -> str:
    """What clients call the model of this file: its name without directory, ending and number of the part."""
    stem = os.path.basename(path).removesuffix(".gguf")
    head, _, tail = stem.rpartition("-00001-of-")
    return head if head and tail.isdecimal() else stem
