"""What is known of one request when it ends: a line of the log, and what the metrics count."""

import json
import logging
import re
import secrets
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO
from urllib.parse import quote

from hetero.errors import HeteroError

LOGGER = logging.getLogger("hetero.server")
POLLED = ("/health", "/metrics", "/panel")  # asked again and again: not worth a line each
ID = re.compile(r"[A-Za-z0-9_\-.:]{1,64}")
LONGEST = {"path": 200, "method": 20, "param": 64}  # characters that are logged
AS_SENT = "/:@!$&'()*+,;=~%[]"  # characters of a path that a line can hold


@dataclass
class Record:
    id: str
    method: str
    path: str
    client: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    seconds: float = 0.0
    first_token_seconds: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    finish: list[str] = field(default_factory=list)  # how each choice ended
    unknown: list[str] = field(default_factory=list)  # fields of the body that nobody knows
    ended: Literal["", "disconnected", "stalled"] = ""  # by the client, before the answer was complete
    error: str = ""  # a refusal's code, or what kind of error it was
    param: str = ""  # the field that was wrong

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def log(self) -> None:
        """Nothing of the prompt and nothing of the answer is in it."""
        shown = {name: value for name, value in vars(self).items() if value not in ("", [], None, 0)}
        shown.pop("started", None)
        if self.unknown:
            shown["unknown"] = [name[:64] for name in self.unknown[:16]] + ["..."] * (len(self.unknown) > 16)
        shown["seconds"] = round(self.seconds, 4)
        if self.first_token_seconds is not None:
            shown["first_token_seconds"] = round(self.first_token_seconds, 4)
        for name, most in LONGEST.items():
            given = getattr(self, name)
            if len(given) > most:
                shown[name] = given[:most] + "..."
        path = quote(shown.get("path", ""), AS_SENT, errors="backslashreplace")
        line = f"{quote(shown.get('method', ''))} {path} {self.status} {self.seconds:.3f} s"
        LOGGER.log(self._level(), line, extra={"fields": shown})

    def _level(self) -> int:
        if self.path in POLLED and (self.status < 400 or self.path == "/health"):
            return logging.DEBUG
        if self.status == 500:
            return logging.ERROR
        return logging.WARNING if self.status > 500 else logging.INFO  # not now: nothing is broken


def request_id(given: str | None) -> str:
    """The client's own, where it is one, so that both logs tell of the same request."""
    return given if given and ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


class TextFormat(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message, fields = told(record)
        for name in ("method", "path", "status", "seconds", "client"):
            fields.pop(name, None)
        trace = fields.pop("traceback", "")
        if "param" in fields:
            fields["param"] = name_or_quoted(fields["param"])
        more = " ".join(f"{name}={shown(value)}" for name, value in fields.items())
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():<7} {message} {more}"
        return "\n".join(escaped(part) for part in [line.rstrip(), *trace.splitlines()])


class JsonFormat(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message, fields = told(record)
        document = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **fields,
        }
        return json.dumps(document, default=str)


def log_failure(error: BaseException, id: str) -> None:
    """Type and place of what went wrong."""
    LOGGER.error(f"request failed: {named(error)}", extra={"fields": {"id": id, "traceback": places(error)}})


def named(error: BaseException) -> str:
    """With the message only of our own errors: another's may quote what a client sent."""
    return f"{type(error).__name__}: {error}" if isinstance(error, HeteroError) else type(error).__name__


def places(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__))


def told(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Message and fields; an exception of uvicorn's or asyncio's comes beside the message, whose line 2 quotes it."""
    message, fields = record.getMessage().strip(), dict(getattr(record, "fields", {}))
    if record.exc_info and (error := record.exc_info[1]) is not None:
        first = message.partition("\n")[0]
        message, fields["traceback"] = f"{first}: {named(error)}", places(error)
    return message, fields


def shown(value: Any) -> str:
    return ",".join(map(name_or_quoted, value)) if isinstance(value, list) else str(value)


def name_or_quoted(name: str) -> str:
    """What a client made up may look like further fields of the line."""
    return json.dumps(name) if re.search(r"[\s,=\"]", name) else name


def escaped(text: str) -> str:
    """One line, whatever is in it: what breaks, hides or turns text is shown by its number, as in Python's strings."""
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


class ToStderr(logging.StreamHandler):
    """What sys.stderr is when something is said: it may have been another one, closed since."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def log_to_stderr(form: Literal["text", "json"]) -> None:
    """uvicorn's own errors, too: its warnings are of connections, and `Connection` says those better."""
    handler = ToStderr()
    handler.setFormatter(JsonFormat() if form == "json" else TextFormat())
    for name, level in (
        ("hetero.server", logging.INFO),
        ("uvicorn.error", logging.ERROR),
        ("asyncio", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
