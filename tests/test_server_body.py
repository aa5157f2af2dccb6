"""Bodies of requests: JSON or not, how deep, how large, how slow."""

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from hetero.server.body import Bodies, Gone, nesting, parsed, without_strings
from hetero.server.refusal import Refusal
from hetero.server.settings import Limits

JSON = {"content-type": "application/json; charset=utf-8"}


def read(
    parts: Iterable[bytes | float | None], headers: dict[str, str] | None = None, limits: Limits | None = None
) -> Any:
    """`parts`: bytes of the body, seconds of silence, None where the client goes away."""
    waiting = list(parts)

    async def receive() -> dict[str, Any]:
        part = waiting.pop(0)
        if isinstance(part, float):
            await asyncio.sleep(part)
            part = waiting.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def apart(work: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(work)

    bodies = Bodies(limits or Limits())
    try:
        return asyncio.run(bodies.read(JSON if headers is None else headers, receive, apart, lambda found: found))
    finally:
        assert bodies._held == 0


def refused(*arguments: Any, **named: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(*arguments, **named)
    return caught.value


def test_a_body_in_parts() -> None:
    assert read([b'{"a"', b": [1, 2]", b"}"]) == {"a": [1, 2]}
    large = {"text": "x" * 200_000}
    assert read([json.dumps(large).encode()]) == large


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": -Infinity}', "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "digits"),
        (b'{"a": 1} x', "not JSON"),
        (b"\x00", "not JSON"),
    ],
)
def test_what_is_no_json(body: bytes, said: str) -> None:
    found = refused([body])
    assert found.status == 400 and said in found.message


def depth(text: bytes) -> int:
    return nesting(without_strings(text))


def test_depth_is_counted_outside_strings() -> None:
    assert depth(b'{"a": "[[[[", "b\\"[": [1, {"c": []}], "d": "\\\\"}') == 4
    assert depth(b'["\\') == 1
    assert depth(b"") == depth(b'"[') == 0
    deep = b"[" * 64 + b"]" * 64
    assert parsed(deep, Limits()) is not None
    with pytest.raises(Refusal, match="nests 64 deep; at most 63"):
        parsed(deep, Limits(depth=63))


@pytest.mark.parametrize("text", [b'"' + b'\\"' * 300_000, b'"a' * 300_000, b"[]" * 300_000, b"\\" * 600_000])
def test_depth_of_hostile_text_takes_linear_time(text: bytes) -> None:
    """Quadratic time would take minutes here."""
    assert depth(text) <= 1


def test_a_million_brackets_are_refused_before_they_are_parsed() -> None:
    assert "1,000,000 deep" in refused([b"[" * 1_000_000]).message


def test_members_and_values_are_counted_outside_strings() -> None:
    limits = Limits(json_objects=2, json_members=2, json_values=3)
    text = b'{"a:::,,,,": [1, 2, 3], "b": 4}'
    assert parsed(text, limits) == json.loads(text)
    assert "3 members of objects; at most 2" in refused([b'{"a": {"b": 1}, "c": 2}'], limits=limits).message
    assert "3 objects; at most 2" in refused([b"[{}, {}, {}]"], limits=limits).message
    assert "4 values; at most 3" in refused([b"[1, 2, 3, 4, 5]"], limits=limits).message


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "no content type"),
        ({"content-type": "text/plain"}, "'text/plain'"),
        ({"content-type": "application/x-www-form-urlencoded"}, "application/json"),
        (JSON | {"content-encoding": "gzip"}, "compressed"),
    ],
)
def test_only_plain_json(headers: dict[str, str], said: str) -> None:
    found = refused([b"{}"], headers)
    assert found.status == 415 and said in found.message


def test_size() -> None:
    limits = Limits(body_bytes=10)
    assert read([b'"12345678"'], limits=limits) == "12345678"
    assert refused([b'"1234', b'56789"'], limits=limits).status == 413
    assert refused([], JSON | {"content-length": "11"}, limits).status == 413  # nothing is read
    assert refused([], JSON | {"content-length": "9" * 4000}, limits).status == 413
    assert refused([b'"12345678"'], limits=Limits(bodies_bytes=9)).status == 503


def test_time() -> None:
    found = refused([b"{", 5.0, b"}"], limits=Limits(body_seconds=0.01))
    assert found.status == 408 and found.headers["connection"] == "close"


def test_a_client_that_goes_away() -> None:
    with pytest.raises(Gone):
        read([b"{", None])
