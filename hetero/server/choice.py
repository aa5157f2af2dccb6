"""One sequence's events become text: reasoning and answer apart, tool calls, stop strings, counts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from hetero.errors import HeteroError
from hetero.generate import AnswerText
from hetero.request import Ended, Event, Generated, Read, Reason, Started
from hetero.server.prompts import Prepared
from hetero.server.tool_calls import CallArguments, CallEnded, CallStarted, Part, ToolCallParser
from hetero.thinking import Piece

if TYPE_CHECKING:
    from hetero.tokenizer import Tokenizer

FinishReason = Literal["stop", "stop_string", "length", "context", "tool_calls"]


class Progress(NamedTuple):
    """Of reading the prompt, in tokens; `seconds` since that began."""

    cached: int
    done: int
    total: int
    seconds: float

    def document(self) -> dict[str, int]:
        """Named as llama.cpp's server does."""
        milliseconds = round(self.seconds * 1e3)
        return {"total": self.total, "cache": self.cached, "processed": self.done, "time_ms": milliseconds}


class Said(NamedTuple):
    """`tokens`: those whose text this completes; of the answer, not of the reasoning."""

    text: str
    thinking: bool
    tokens: tuple[Generated, ...] = ()


class Finished(NamedTuple):
    reason: FinishReason
    stop_string: str | None = None


class Failed(NamedTuple):
    error: HeteroError


Delta = Progress | Said | CallStarted | CallArguments | CallEnded | Finished | Failed


@dataclass
class Usage:
    prompt_tokens: int
    cached_tokens: int = 0
    generated_tokens: int = 0
    reasoning_tokens: int = 0


class Choice:
    """`take` every event of one sequence; what it returns is for the client, in this order."""

    def __init__(self, tokenizer: "Tokenizer", prepared: Prepared):
        self.usage = Usage(len(prepared.prompt.ids))
        self.finished = self.stopped = False
        self.begun = False  # a token is there: what the prompt holds is in the cache
        self._started = 0.0
        calls = prepared.calls
        markers = frozenset(calls.ids) if calls else frozenset[int]()
        self._text = AnswerText(tokenizer, prepared.prompt, prepared.sampling.stop, markers)
        self._parser = ToolCallParser(calls) if calls else None
        self._prepared = prepared
        self._thinking = bool(prepared.prompt.opens_thinking)
        self._tokens: list[Generated] = []  # of the answer, whose text was not told yet
        self._silent = 0  # tokens of the reasoning whose text was not told yet: its end is none
        self._called = False
        self._blank = ""  # white space that may turn out not to belong to the answer
        self._holds_blanks = self._parser is not None or prepared.document
        self._spoke = bool(prepared.prompt.begun)

    def take(self, event: Event, at: float = 0.0) -> list[Delta]:
        """`at`: seconds by a clock, when it was heard.

        `stopped` afterwards: no more of the sequence is wanted; how it finished is told at its last event.
        """
        if isinstance(event, Started):
            self.usage.cached_tokens, self._started = event.cached_tokens, at
            return [Progress(event.cached_tokens, event.cached_tokens, self.usage.prompt_tokens, 0.0)]
        if isinstance(event, Read):
            return [Progress(self.usage.cached_tokens, event.done, event.total, at - self._started)]
        self.begun = True
        if isinstance(event, Ended):
            return self._ended(event)
        return [] if self.stopped else self._generated(event)

    def _generated(self, event: Generated) -> list[Delta]:
        self.usage.generated_tokens += 1
        self._tokens.append(event)
        deltas = self._told(self._text.push(event.id))
        if self._thinking:
            self._silent += 1
            self._tokens.clear()
            if deltas:
                self._thought()
        self.stopped = self.stopped or self._text.stopped
        return deltas

    def _ended(self, event: Ended) -> list[Delta]:
        self.finished = True
        self.usage.cached_tokens = event.telemetry.cached_tokens
        if event.reason == "failed" or (event.reason == "cancelled" and not self.stopped):
            return [Failed(event.error or HeteroError("the answer was cancelled"))]
        cut = self._text.stopped or event.reason != "stop"
        pieces = [] if self._text.stopped else self._text.finish()
        if cut and self._parser and self._parser.calling:  # of a mark or an argument that was cut within a character
            pieces = [piece._replace(text=piece.text.rstrip("\ufffd")) for piece in pieces]
        deltas = self._told(pieces)
        if deltas and self._thinking:
            self._thought()
        deltas += self._parsed(self._parser.finish(cut)) if self._parser else []
        deltas += [] if self._called or (self._parser and self._parser.dropped) else self._spoken()
        return [*deltas, self._finish(event.reason)]

    def _finish(self, reason: Reason) -> Finished:
        if self._text.stopped:
            return Finished("stop_string", self._text.stop_string)
        if reason == "length":
            return Finished("context" if self._prepared.fills_context else "length")
        return Finished("tool_calls" if self._called else "stop")

    def _thought(self) -> None:
        self.usage.reasoning_tokens += self._silent
        self._silent = 0

    def _told(self, pieces: list[Piece]) -> list[Delta]:
        deltas: list[Delta] = []
        for piece in pieces:
            self._thinking = piece.thinking
            if self._thinking:
                self._tokens.clear()
                deltas.append(Said(piece.text, True))
            else:
                deltas += self._parsed(self._parser.push(piece.text) if self._parser else [piece.text])
        return deltas

    def _parsed(self, parts: list[Part]) -> list[Delta]:
        """White space before a call and after the last one is the markup's, that before a document nobody's."""
        deltas: list[Delta] = []
        for part in parts:
            if self.stopped:
                break
            if isinstance(part, str):
                self._blank += "" if self._prepared.only_calls else part  # so much of one as came before it was cut
                if not (self._holds_blanks and self._blank.isspace()):
                    deltas += self._spoken()
            else:
                deltas.append(part)
                self._called, self._blank = True, ""
                self.stopped = isinstance(part, CallEnded) and not self._prepared.parallel
        return deltas

    def _spoken(self) -> list[Delta]:
        text, self._blank = self._blank, ""
        if self._prepared.document and not self._spoke:
            text = text.lstrip()
        self._spoke = self._spoke or bool(text)
        tokens, self._tokens = tuple(self._tokens), []
        return [Said(text, False, tokens)] if text else []
