"""What may take long is done off the event loop; and a client that leaves meanwhile is not waited for."""

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hetero.server import body, generation
from hetero.server.body import Gone
from hetero.server.chat_form import ChatForm
from hetero.server.completion_answer import CompletionAnswer
from tests.fake_scheduler import Characters, FakeScheduler
from tests.test_server_answers import SAID, Client

STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """threads(owner, name) notes the names of the threads in which that method is called."""

    def watch(owner: Any, name: str) -> list[str]:
        found: list[str] = []
        plain = getattr(owner, name)

        def noted(*arguments: Any, **named: Any) -> Any:
            found.append(threading.current_thread().name)
            return plain(*arguments, **named)

        monkeypatch.setattr(owner, name, noted)
        return found

    return watch


def apart(found: list[str]) -> bool:
    return bool(found) and all(name.startswith("prepare") for name in found)


def test_forms_of_large_bodies(threads: Callable[..., list[str]]) -> None:
    read, asked = threads(ChatForm, "read"), threads(ChatForm, "ask")
    client = Client(FakeScheduler(["x"]), context=1 << 20)
    large = {"messages": [{"role": "user", "content": "y" * body.LARGE}], "colour": 1}
    status, headers, _ = client.post("/v1/chat/completions", large)
    assert status == 200 and headers["x-hetero-unknown-fields"] == "colour"
    assert apart(read) and apart(asked)
    assert client.post("/v1/chat/completions", large | {"store": True})[0] == 400


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/tokenize", {"content": "Hi", "with_pieces": True}),
        ("/detokenize", {"tokens": [72, 105]}),
        ("/v1/completions", {"prompt": [72, 105], "echo": True}),
    ],
)
def test_tokens_to_text(path: str, fields: dict[str, Any], threads: Callable[..., list[str]]) -> None:
    decoded = threads(Characters, "decode")
    status, _, text = Client(FakeScheduler(["!"])).post(path, fields)
    assert status == 200 and "H" in text and apart(decoded)


@pytest.mark.parametrize("tokens", [10, 2000])
def test_documents_of_long_answers(tokens: int, threads: Callable[..., list[str]]) -> None:
    written = threads(CompletionAnswer, "document")
    client = Client(FakeScheduler(["z" * tokens]), context=4000)
    status, _, text = client.post("/v1/completions", {"prompt": "Hi", "max_tokens": 3000})
    assert status == 200 and "z" * tokens in text
    assert apart(written) is (tokens > 1000)


def test_a_client_that_leaves_while_its_prompt_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is begun for it; what another one keeps waiting in the line of work is not done at all."""
    scheduler, held, began = FakeScheduler(["x"]), threading.Event(), []

    def encode(self: Any, text: str, **how: Any) -> list[int]:
        began.append(text)
        assert held.wait(20)
        return [72]

    monkeypatch.setattr(Characters, "encode", encode)
    client = Client(scheduler)

    async def leave() -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(*(client._post("/v1/completions", {"prompt": "Hi"}, 0.05, 0.0) for _ in range(5)))

    asyncio.run(leave())
    held.set()
    client.service.close()
    assert len(began) == 2 and not scheduler.requests and not client.service._waiting


@pytest.mark.parametrize("error", [Gone(), ValueError("ours")])
def test_an_exchange_whose_answer_cannot_be_opened_is_closed(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(generation, "wanted", fail)
    scheduler = FakeScheduler([None])
    status = Client(scheduler).post("/v1/chat/completions", SAID["/v1/chat/completions"])[0]
    assert status == (0 if isinstance(error, Gone) else 500) and scheduler.cancelled == [0]


@pytest.mark.parametrize("size", [1, 3, 64, 1 << 18])
def test_slices_change_nothing_of_what_stands_outside_strings(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole texts, and the beginnings of them."""
    monkeypatch.setattr(body, "SLICE", size)
    texts = [rb'{"a": "b\"{", "\\": [1, "\\\"]", {"c": "\\\\"}]}', b'"' + b"\\" * 9 + b'"', b"[]", b'"x', b""]
    for text in texts:
        for end in range(len(text) + 1):
            assert body.without_strings(text[:end]) == STRING.sub(b"", text[:end]), text[:end]
