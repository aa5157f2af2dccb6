"""Many clients over few places, with conversations that grow, shared system prompts, and clients that change their
mind: every finished answer is, to the byte, what the same request gets alone after the same prefix."""

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import pytest

from hetero import RunConfig, demo, load
from hetero.continuation import Continuation
from hetero.engine import Engine
from hetero.scheduler import Snapshot
from hetero.server.app import create_app
from hetero.server.loaded import Loaded
from hetero.server.run import Server, listening
from hetero.server.service import Service
from hetero.server.settings import ServeSettings
from hetero.template import ChatTemplate
from hetero.tokenizer import Tokenizer
from tests.watched_scheduler import Asked, Watched

CLIENTS, SLOTS, QUEUE, CONTEXT = 32, 4, 12, 640  # 16 may be there at once: others are told to come back
LONGEST_CONVERSATION, LONGEST_ANSWER = 500, 40  # tokens
SYSTEMS = (
    "Be brief.",
    "You are a small model. " * 12,
    "Tell the truth. Say what you know, and say that you do not know what you do not know. " * 9,
)
QUESTIONS = (
    "Who are you?",
    "Tell me a story about a dog.",
    "What comes after Sunday?",
    "Why is the sky blue?",
    "Go on.",
)


@dataclass
class Outcome:
    """`texts`: of finished answers, with the token counts that the server told."""

    texts: list[tuple[str, int]] = field(default_factory=list)
    refused: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)


class Client:
    """One conversation after the other: at least `least` requests, one of which is finished, and until so many seconds
    have passed."""

    def __init__(self, address: tuple[str, int], seed: int, outcome: Outcome):
        self.address, self.rng, self.outcome = address, random.Random(seed), outcome
        self.messages: list[dict[str, str]] = []
        self.taken = self.finished = 0  # requests

    def run(self, least: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        try:
            while self.taken < least or not self.finished or time.monotonic() < end:
                self.ask()
        except Exception as error:
            self.outcome.wrong.append(f"{type(error).__name__}: {error}")

    def ask(self) -> None:
        rng = self.rng
        if not self.messages or rng.random() < 0.2:
            self.messages = [{"role": "system", "content": rng.choice(SYSTEMS)}]
        question = {"role": "user", "content": rng.choice(QUESTIONS)}
        body = {"messages": [*self.messages, question], "max_tokens": rng.randint(1, LONGEST_ANSWER), "temperature": 0}
        body |= {"stream": True, "stream_options": {"include_usage": True}, "logit_bias": {"1": -3.0}}
        connection = http.client.HTTPConnection(*self.address, timeout=300)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            if rng.random() < 0.1:  # while it waits, or is read
                time.sleep(rng.random() / 10)
                self.outcome.left += 1
                self.taken += 1
                return
            self.take(connection.getresponse(), question, rng.randrange(1, 30) if rng.random() < 0.2 else None)
        finally:
            connection.close()

    def take(self, response: http.client.HTTPResponse, question: dict[str, str], leave: int | None) -> None:
        """`leave`: after so many chunks."""
        if response.status == 429:
            assert int(response.headers["retry-after"]) >= 1
            self.outcome.refused += 1
            time.sleep(0.1)  # impatient
            return
        self.taken += 1
        if response.status == 400 and json.loads(response.read())["error"]["code"] == "context_length_exceeded":
            self.messages = []
            return
        assert response.status == 200, response.status
        text, usage, chunks = "", None, 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            document = json.loads(line[6:])
            assert "error" not in document, document
            text += "".join(choice["delta"].get("content") or "" for choice in document["choices"])
            usage, chunks = document["usage"] or usage, chunks + 1
            if chunks == leave:
                self.outcome.left += 1
                return
        assert usage is not None, "the stream was cut"
        self.finished += 1
        self.outcome.texts.append((text, usage["completion_tokens"]))
        self.messages += [question, {"role": "assistant", "content": text}]
        if usage["total_tokens"] > LONGEST_CONVERSATION:
            self.messages = []


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[Engine, Tokenizer]]:
    engine, tokenizer = load(demo.path(), RunConfig(context=CONTEXT, sequences=SLOTS, threads=2, device="cpu"))
    yield engine, tokenizer
    engine.close()


@contextmanager
def serving(engine: Engine, tokenizer: Tokenizer) -> Iterator[tuple[tuple[str, int], Watched]]:
    settings = ServeSettings(port=0, queue=QUEUE)
    scheduler = Watched(engine, max_token_gap=0.05, queue=QUEUE)
    service = Service("demo", settings, created=0)
    template = ChatTemplate.from_gguf(engine.file, tokenizer)
    service.ready(Loaded(scheduler, tokenizer, template, engine.context, SLOTS, "demo"))
    listener = listening(settings)
    server = Server(service, create_app(service, settings), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    where = listener.getsockname()[:2]
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield where, scheduler
    finally:
        server.should_exit = True
        thread.join()
        service.close()


def run(engine: Engine, tokenizer: Tokenizer, least: int, seconds: float) -> tuple[Outcome, Watched, Snapshot]:
    outcome = Outcome()
    with serving(engine, tokenizer) as (where, scheduler):
        clients = [Client(where, seed, outcome) for seed in range(CLIENTS)]
        threads = [threading.Thread(target=client.run, args=(least, seconds)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert scheduler.join(60), "requests of clients that left go on"
        snapshot = scheduler.snapshot()
    assert not engine.cache.lengths.any() and len(engine.cache.free_pages) == snapshot.pages_free
    return outcome, scheduler, snapshot


def alone(engine: Engine, asked: Asked) -> list[int]:
    """Its answer, the prompt in passes of tokens that are computed in the same way."""
    model, request = engine.model, asked.request
    right, at = model.absorbed_limit, 0
    engine.forget()
    try:
        for expanded, tokens in groupby(asked.expanded):
            size = len(list(tokens))
            model.absorbed_limit = 0 if expanded else CONTEXT
            engine.forward(list(request.ids[at : at + size]), [])
            at += size
    finally:
        model.absorbed_limit = right
    most = request.sampling.max_tokens
    assert most is not None
    going = Continuation(list(request.ids), request.sampling, engine.config.vocab_size, most, request.stop_ids)
    return list(engine.decode(request.ids[-1], going))


def check(engine: Engine, tokenizer: Tokenizer, outcome: Outcome, scheduler: Watched, snapshot: Snapshot) -> None:
    assert not outcome.wrong, "\n".join(outcome.wrong)
    finished = [asked for asked in scheduler.asked if asked.ended in ("stop", "length")]
    assert {asked.ended for asked in scheduler.asked} <= {"stop", "length", "cancelled"}
    absorbed = engine.model.absorbed_limit >= CONTEXT
    for asked in finished:
        request = asked.request
        assert not (absorbed and any(asked.expanded))
        expected = (
            list(engine.generate(request.ids, request.sampling, request.stop_ids)) if absorbed else alone(engine, asked)
        )
        assert asked.ids == expected, "an answer depends on what ran beside it"
    said = sorted((tokenizer.decode(asked.ids), len(asked.ids)) for asked in finished)
    heard = sorted(outcome.texts)
    assert not [one for one in heard if one not in said], "what clients read is not what was generated"
    assert 0 < snapshot.refused <= outcome.refused + outcome.left and outcome.left > 0 and len(heard) >= CLIENTS
    assert snapshot.running == snapshot.waiting == snapshot.pages_held == snapshot.pages_shared == 0
    assert snapshot.pages_cached + snapshot.pages_free == snapshot.pages
    assert sum(snapshot.ended.values()) == len(scheduler.asked)


def check_waits(scheduler: Watched) -> None:
    """Places are given in the order of submission. So a request waits for its place while what is ahead of it is
    computed, and nothing else. Then half of the time in which prompts are read goes to the one that came first, so that
    behind it at most as much is read as of it and those ahead; and the other places are answered meanwhile."""
    assert scheduler.order == sorted(scheduler.order)
    bounds = [2 * (asked.ahead + len(asked.request.ids)) + SLOTS * LONGEST_ANSWER for asked in scheduler.asked]
    longest, bound = max((asked.waited, bound) for asked, bound in zip(scheduler.asked, bounds, strict=True))
    print(f"longest wait for a first token: {longest} tokens of all sequences; its bound {bound}")
    assert all(asked.waited <= bound for asked, bound in zip(scheduler.asked, bounds, strict=True))


@pytest.mark.parametrize("absorbed", [True, False])
def test_load(absorbed: bool, loaded: tuple[Engine, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    at_load(absorbed, (2, 0.0), loaded, monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("absorbed", [True, False])
def test_load_for_minutes(absorbed: bool, loaded: tuple[Engine, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    at_load(absorbed, (2, 300.0), loaded, monkeypatch)


def at_load(
    absorbed: bool, wanted: tuple[int, float], loaded: tuple[Engine, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`absorbed`: every pass, so that what is cached depends on the tokens before and on nothing else. Otherwise, as
    the server has it, long prompts are computed in another way, which is noted and done again."""
    engine, tokenizer = loaded
    if absorbed:
        monkeypatch.setattr(engine.model, "absorbed_limit", CONTEXT)
    monkeypatch.setattr(engine, "close", lambda: None)
    outcome, scheduler, snapshot = run(engine, tokenizer, *wanted)
    check(engine, tokenizer, outcome, scheduler, snapshot)
    check_waits(scheduler)
