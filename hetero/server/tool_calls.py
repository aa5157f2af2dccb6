"""Reads tool calls out of an answer while it streams (hetero/tool_format.py has their forms)."""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from hetero.generate import MARK
from hetero.sampler import overlap
from hetero.tool_format import NAME, ToolFormat

HEADER_CHARACTERS = 512  # of what stands before the arguments; beyond it, it is no call
TAIL_CHARACTERS = 64  # of space after arguments, held back because a fence may follow


@dataclass(frozen=True)
class CallStarted:
    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """`delta`: a piece of the JSON text, as the model wrote it."""

    index: int
    delta: str


@dataclass(frozen=True)
class CallEnded:
    index: int


Part = str | CallStarted | CallArguments | CallEnded


class ToolCallParser:
    """Give the answer of an AnswerText made with `markers=frozenset(format.ids)` to `push`, then call `finish`.

    Whatever begins like a call and is none comes out as text, as it was written. Once the name and the first brace of
    the arguments are there, it is a call: what follows up to its end are its arguments, good JSON or not. A call that
    is cut off ends where the text ends; before its first brace there is nothing of it to tell. Arguments that were left
    out are an empty object. `dropped`: so much began like a call that was cut off.
    """

    def __init__(self, format: ToolFormat):
        self._fenced, self._kimi = format.style == "fenced", format.style == "kimi"
        mark = MARK if format.marked else ""
        self._begin, self._end, self._call, self._call_end, _ = (mark + one for one in format.marks)
        self._header = header_pattern(format, mark)
        self._state: Callable[[list[Part]], bool] = self._text
        self._held = ""
        self._section = ""  # of calls, as written, as long as it holds none
        self._index = -1
        self._written = False  # something of the arguments
        self.dropped = ""

    def push(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while self._held and self._state(parts):
            pass
        return joined(parts)

    @property
    def calling(self) -> bool:
        """The marks that begin a call are there, or it has begun."""
        return self._state != self._text

    def finish(self, cut: bool = False) -> list[Part]:
        """The answer ended, perhaps in the middle. `cut`: not by the model, which would have gone on."""
        held, self._held = self._held, ""
        parts: list[Part] = []
        if self._state == self._arguments:
            self._ended(parts, held[: len(held) - overlap(held, self._call_end)])
        elif self._state == self._between and not self._section:
            parts.append("" if self._end.startswith(held.strip()) else held.strip())
        elif cut and self.calling:
            self.dropped = self._section + held
        else:
            parts.append(self._section + held)
        self._state, self._section = self._text, ""
        return joined(parts)

    def _text(self, parts: list[Part]) -> bool:
        before, begin, after = self._held.partition(self._begin)
        if begin:
            self._section, self._held, self._state = begin, after, self._between
        else:
            keep = overlap(before, self._begin)
            before, self._held = before[: len(before) - keep], before[len(before) - keep :]
        parts.append(before)
        return bool(begin)

    def _between(self, parts: list[Part]) -> bool:
        """After the begin of the section, or the end of a call."""
        held = self._held.lstrip()
        if held.startswith(self._call):
            self._state = self._name
        elif held.startswith(self._end) and not self._section:
            self._state, self._held = self._text, held[len(self._end) :]
        elif any(mark.startswith(held) for mark in (self._call, self._end)):
            return False
        else:
            self._no_call(parts)
        return True

    def _name(self, parts: list[Part]) -> bool:
        header = self._header.match(self._held)
        if header:
            self._index += 1
            self._written, self._section = False, ""
            id = header["id"] if self._kimi else f"call_{secrets.token_hex(12)}"
            parts.append(CallStarted(self._index, id, header["name"]))
            self._held, self._state = self._held[header.end() :], self._arguments
            return True
        if self._call_end in self._held or self._end in self._held or len(self._held) > HEADER_CHARACTERS:
            self._no_call(parts)
            return True
        return False

    def _arguments(self, parts: list[Part]) -> bool:
        before, end, after = self._held.partition(self._call_end)
        if end:
            self._ended(parts, before)
            self._held, self._state = after, self._between
            return True
        shown = before[: len(before) - overlap(before, self._call_end)]
        if self._fenced:
            shown = max(unfenced(shown), shown[:-TAIL_CHARACTERS], key=len)
        self._say(parts, shown)
        self._held = self._held[len(shown) :]
        return False

    def _ended(self, parts: list[Part], arguments: str) -> None:
        arguments = unfenced(arguments) if self._fenced else arguments
        self._say(parts, arguments)
        if not self._written:
            self._say(parts, "{}")
        parts.append(CallEnded(self._index))

    def _say(self, parts: list[Part], arguments: str) -> None:
        if arguments:
            self._written = True
            parts.append(CallArguments(self._index, arguments))

    def _no_call(self, parts: list[Part]) -> None:
        """What was taken for the begin of one is text; a call may still begin after it."""
        step = len(self._call) if self._state == self._name else 0
        text = self._held.lstrip() if step else self._held
        lost = len(self._held) - len(text) + step
        parts.append(self._section + self._held[:lost])
        self._held, self._section, self._state = self._held[lost:], "", self._text


def header_pattern(format: ToolFormat, mark: str) -> re.Pattern[str]:
    """From the begin of a call up to its arguments, which begin with a brace, or are missing."""
    begin, separator, end = (re.escape(mark + one) for one in (format.call_begin, format.separator, format.call_end))
    name = rf"(?P<name>{NAME.pattern})"
    if format.style == "fenced":
        inner = rf"\s*function\s*{separator}\s*{name}\s*(?:```(?:json)?\s*)?"
    elif format.style == "kimi":
        inner = rf"\s*(?P<id>(?:functions\.)?{name}(?::\d{{1,9}})?)\s*{separator}\s*"
    else:
        inner = rf"\s*{name}\s*{separator}\s*"
    return re.compile(rf"\s*{begin}{inner}(?={{|(?:```\s*)?{end})")


def unfenced(arguments: str) -> str:
    """Without space, a fence or a part of one, and space at the end: nothing a JSON object could end with."""
    arguments = arguments.rstrip()
    fence = min(3, len(arguments) - len(arguments.rstrip("`")))
    return arguments[: len(arguments) - fence].rstrip()


def joined(parts: list[Part]) -> list[Part]:
    """Neighbouring texts, and arguments of one call, as one; nothing empty, no marks."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, str) and isinstance(last, str):
            merged[-1] = last + part
        elif isinstance(part, CallArguments) and isinstance(last, CallArguments) and last.index == part.index:
            merged[-1] = CallArguments(part.index, last.delta + part.delta)
        elif part:
            merged.append(part)
    return [clean for part in merged if (clean := without_marks(part))]


def without_marks(part: Part) -> Part:
    if isinstance(part, str):
        return part.replace(MARK, "")
    if isinstance(part, CallArguments):
        return CallArguments(part.index, part.delta.replace(MARK, ""))
    return part
