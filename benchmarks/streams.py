"""A running server's streams, timed by a client: when each token of an answer came."""

import http.client
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Event
from time import perf_counter
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
PATIENCE = 3600.0  # seconds for the next token


@dataclass
class Timed:
    """A stream of tokens. Times are of one clock, in seconds, one for each event with text."""

    asked: float = 0.0
    times: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    begun: Event = field(default_factory=Event)
    left: Event = field(default_factory=Event)  # set by whoever wants no more of it

    @property
    def first_token_seconds(self) -> float:
        return self.times[0] - self.asked

    @property
    def tokens_per_second(self) -> float:
        return (self.generated_tokens - 1) / (self.times[-1] - self.times[0])

    def tokens(self, start: float, end: float) -> float:
        """That came after `start`, until `end`; nearly each has an event of its own."""
        return sum(start < at <= end for at in self.times) * self.generated_tokens / len(self.times)

    def longest_gap(self, start: float, end: float) -> float:
        """Of the gaps between two tokens that lie in this time, at least in part."""
        gaps = [later - earlier for earlier, later in pairwise(self.times) if later > start and earlier < end]
        return max(gaps, default=0.0)


class Client:
    """`banned`: token ids that do not come, so that answers have the length asked for."""

    def __init__(self, url: str, banned: Iterable[int]):
        self._where = urlsplit(url)
        self._banned = {str(id): -100 for id in banned}
        self._threads = ThreadPoolExecutor(64)

    def start(self, prompt: Sequence[int], tokens: int) -> tuple[Timed, "Future[Timed]"]:
        timed = Timed()
        return timed, self._threads.submit(self._ask, timed, prompt, tokens)

    def ask(self, prompt: Sequence[int], tokens: int, words: Sequence[int] = ()) -> Timed:
        """`words`: the token ids that the answer may have; none: all."""
        return self._ask(Timed(), prompt, tokens, words)

    def all(self, calls: Iterable[Callable[[], T]]) -> list[T]:
        """At one time."""
        return [one.result() for one in [self._threads.submit(call) for call in calls]]

    def _ask(self, timed: Timed, prompt: Sequence[int], tokens: int, words: Sequence[int] = ()) -> Timed:
        bias = self._banned | {str(id): 100 for id in words}
        body = {"prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "logit_bias": bias}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection(self._where.hostname or "", self._where.port, timeout=PATIENCE)
        timed.asked = perf_counter()
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise SystemExit(f"the server answers {response.status}: {response.read().decode()}")
            for line in response:
                if line.startswith(b"data: {"):
                    take(json.loads(line[6:]), timed)
                if timed.left.is_set():
                    break
        finally:
            timed.begun.set()
            connection.close()
        return timed

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection(self._where.hostname or "", self._where.port, timeout=60)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def take(document: dict, timed: Timed) -> None:
    if "error" in document:
        raise SystemExit(f"the server failed: {document['error']['message']}")
    text = "".join(choice["text"] for choice in document["choices"])
    if text:
        timed.times.append(perf_counter())
        timed.begun.set()
    timed.text += text
    if usage := document.get("usage"):
        timed.prompt_tokens, timed.generated_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        timed.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
