"""A request's body: read within its limits of bytes and time, and parsed within a limit of depth."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol, TypeVar

import numpy as np

from hetero.errors import Draining
from hetero.server.refusal import Refusal, bad
from hetero.server.settings import Limits
from hetero.sizes import format_size

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

T = TypeVar("T")

LARGE = 64 << 10  # bytes that are parsed in a millisecond
SLICE = 256 << 10  # bytes that are looked at together
OTHER = bytes(set(range(256)) - set(b"[]{}"))
LEAVES = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")


class Gone(Exception):
    """The client went away."""


class Apart(Protocol):
    """Does some work off the event loop."""

    async def __call__(self, work: Callable[[], T]) -> T: ...


class Bodies:
    """Reads bodies; together they never hold more than `limits.bodies_bytes`."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._held = 0
        self._coming: set[asyncio.Timeout] = set()  # of bodies that are not complete
        self._draining = False

    async def read(self, headers: Mapping[str, str], receive: Receive, apart: Apart, made: Callable[[Any], T]) -> T:
        """What `made` makes of the parsed JSON; of a large body both are done off the event loop.

        Refusal: too large (413), too slow (408), not JSON (400 or 415); or what `made` raises. Draining: not complete
        before `drain`."""
        if self._draining:
            raise Draining
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            found = f"the content type is {kind!r}" if kind else "there is no content type"
            raise Refusal(415, f"{found[:100]}; it must be application/json; set the header content-type")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "the body is compressed; this server takes plain JSON; leave content-encoding out")
        self._check(int(headers["content-length"]) if headers.get("content-length", "").isdecimal() else 0)
        body = bytearray()
        try:
            await self._filled(body, receive)
            if len(body) <= LARGE:
                return made(parsed(bytes(body), self._limits))
            return await apart(lambda: made(parsed(bytes(body), self._limits)))
        finally:
            self._held -= len(body)

    def drain(self) -> None:
        """Nobody waits for the rest of a body any more."""
        self._draining = True
        now = asyncio.get_running_loop().time()
        for patience in self._coming:
            if not patience.expired():
                patience.reschedule(now)

    async def _filled(self, body: bytearray, receive: Receive) -> None:
        seconds = self._limits.body_seconds
        patience = asyncio.timeout(seconds)
        try:
            async with patience:
                self._coming.add(patience)
                await self._fill(body, receive)
        except TimeoutError:
            if self._draining:
                raise Draining from None
            close = {"connection": "close"}
            raise Refusal(408, f"the body did not come within {seconds:g} s", headers=close) from None
        finally:
            self._coming.discard(patience)

    async def _fill(self, body: bytearray, receive: Receive) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part = message.get("body", b"")
            self._check(len(body) + len(part))
            if self._held + len(part) > self._limits.bodies_bytes:
                raise Refusal(503, "too many large requests at once", headers={"retry-after": "1"})
            self._held += len(part)
            body += part
            if not message.get("more_body", False):
                return

    def _check(self, size: int) -> None:
        if size > (most := self._limits.body_bytes):
            found = f"the body has {format_size(size)} or more" if size < 1 << 40 else "the body is too large"
            raise Refusal(413, f"{found}; at most {format_size(most)}; shorten it", headers={"connection": "close"})


def parsed(body: bytes, limits: Limits) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no NaN. What nests deeper, or has more members or values than the limits, is
    refused before anything is parsed: each that is of a wrong type would cost a kilobyte and 8 us to complain of."""
    bare = without_strings(body)
    if (depth := nesting(bare)) > limits.depth:
        raise bad(f"the JSON nests {depth:,} deep", f"at most {limits.depth} levels", "flatten it")
    for what, mark, most in (
        ("objects", b"{", limits.json_objects),
        ("members of objects", b":", limits.json_members),
        ("values", b",", limits.json_values),
    ):
        if (count := bare.count(mark)) > most:
            raise bad(f"the JSON holds {count:,} {what}", f"at most {most:,}", "send less at once")
    try:
        return json.loads(body.decode(), parse_constant=not_json)
    except UnicodeDecodeError as error:
        raise bad(f"byte {error.start:,} of the body is not UTF-8", "JSON is UTF-8") from None
    except json.JSONDecodeError as error:
        raise bad(f"the body is not JSON: {error.msg} at character {error.pos:,}") from None
    except ValueError:
        raise bad("the body holds a number with thousands of digits", "numbers have at most 4,300") from None


def without_strings(text: bytes) -> bytes:
    """Of JSON what stands outside of strings; behind a backslash that does, where no JSON goes on, anything.

    In slices and without the GIL, which a regular expression would hold for 0.15 s over 8 MiB of short strings.
    """
    bare, inside, escaped = [], False, False  # escaped: the next byte is
    for at in range(0, len(text), SLICE):
        part = np.frombuffer(text, np.uint8, min(SLICE, len(text) - at), at)
        quotes = part == ord('"')
        slashes = np.flatnonzero(part == ord("\\"))
        if escaped:  # by a backslash of its own
            quotes[0] = False
            slashes = slashes[slashes > 0]
        # Of a run of backslashes the first, third, ... escape what follows.
        starts = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
        nth = np.arange(len(slashes)) - np.repeat(starts, np.diff(starts, append=len(slashes)))
        follows = slashes[nth % 2 == 0] + 1
        escaped = bool(len(follows)) and int(follows[-1]) == len(part)
        quotes[follows[: len(follows) - escaped]] = False
        within = np.logical_xor.accumulate(quotes) ^ inside
        bare.append(part[~(within | quotes)].tobytes())
        inside = bool(within[-1])
    return b"".join(bare)


def nesting(bare: bytes) -> int:
    """Largest number of open brackets and braces, of any text without its strings."""
    brackets = bare.translate(LEAVES, OTHER)
    return int(np.frombuffer(brackets, np.int8).cumsum(dtype=np.int64).max(initial=0))


def not_json(constant: str) -> None:
    raise json.JSONDecodeError(f"{constant} is no JSON", "", 0)
