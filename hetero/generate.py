"""From messages or plain text to a streamed answer: the edge where text becomes token ids and ids become text again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hetero.continuation import Constraint
from hetero.errors import RequestError
from hetero.sampler import Sampling, StopStrings
from hetero.thinking import Piece, ThinkingSplitter

if TYPE_CHECKING:
    from hetero.engine import Engine
    from hetero.template import ChatTemplate
    from hetero.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    ids: Sequence[int]
    opens_thinking: bool | None = None  # None: plain text, in which `<think>` means nothing
    begun: str | None = None  # the text of the answer that `ids` end with, "" within its reasoning; None: nothing of it


# Stands before the text of a token named in `markers`: what a model only quotes never passes for one. A lone surrogate
# never occurs in decoded text.
MARK = "\udc00"


class AnswerText:
    """The text of an answer from its token ids: thinking apart, ended by stop strings, which look at the answer only.

    `push` every id, then `finish` unless `stopped`: both return what may be shown now. Control tokens other than stop
    ids stay visible, except in plain text; `</think>` may be one of them. MARK stands before those of `markers` in the
    answer, for the parser of tool calls. `stop_string`: the one that was found.
    """

    def __init__(
        self, tokenizer: "Tokenizer", prompt: Prompt, stop: tuple[str, ...], markers: frozenset[int] = frozenset()
    ):
        self.stopped = False
        self._stop, self._markers = StopStrings(stop), markers
        opened, begun = prompt.opens_thinking, prompt.begun is not None
        self._splitter = None if opened is None else ThinkingSplitter(opened, begun)
        self._stream = tokenizer.stream(skip_special=self._splitter is None)

    @property
    def stop_string(self) -> str | None:
        return self._stop.found

    def push(self, id: int) -> list[Piece]:
        before = self._stream.flush() + MARK if id in self._markers else ""
        return self._shown(self._split(before + self._stream.push(id)))

    def finish(self) -> list[Piece]:
        """What was held back: it became neither a stop string nor a mark."""
        pieces = self._split(self._stream.flush())
        shown = self._shown(pieces + (self._splitter.flush() if self._splitter else []))
        return shown if self.stopped or not (held := self._stop.flush()) else [*shown, Piece(held, False)]

    def _split(self, text: str) -> list[Piece]:
        if self._splitter is None:
            return [Piece(text, False)] if text else []
        return self._splitter.push(text)

    def _shown(self, pieces: list[Piece]) -> list[Piece]:
        shown = []
        for piece in pieces:
            if piece.thinking:
                piece = Piece(piece.text.replace(MARK, ""), True)
            else:
                text, self.stopped = self._stop.push(piece.text)
                piece = Piece(text, False)
            if piece.text:
                shown.append(piece)
            if self.stopped:
                break
        return shown


class Answer:
    """Iterate for the pieces as they are generated; `text`, `thinking` and `finish_reason` are complete afterwards.

    `finish_reason` is "length" at max_tokens or the end of the context, and "interrupted" when iteration was cut short.
    `constraint`: what its tokens are held to.
    """

    def __init__(
        self,
        engine: "Engine",
        tokenizer: "Tokenizer",
        prompt: Prompt,
        sampling: Sampling,
        constraint: Constraint | None = None,
    ):
        self.text, self.thinking = "", ""
        self.tokens = 0
        self.finish_reason: Literal["stop", "length", "interrupted"] = "interrupted"
        self._engine = engine
        self._answer_text = AnswerText(tokenizer, prompt, sampling.stop)
        room = engine.context - len(prompt.ids) + 1  # as the engine counts: the last token generated is never cached
        self._limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        self._ids = engine.generate(prompt.ids, sampling, tokenizer.stop_ids, constraint)

    def __iter__(self) -> Iterator[Piece]:
        for id in self._ids:
            self.tokens += 1
            yield from self._kept(self._answer_text.push(id))
            if self._answer_text.stopped:
                break
        else:
            yield from self._kept(self._answer_text.finish())
        stopped = self._answer_text.stopped
        self.finish_reason = "length" if self.tokens >= self._limit and not stopped else "stop"

    def document(self, model: str) -> dict[str, Any]:
        """What `hetero generate --json` prints, once iteration has ended."""
        telemetry = self._engine.telemetry
        return {
            "model": model,
            "text": self.text,
            "thinking": self.thinking,
            "finish_reason": self.finish_reason,
            "prompt_tokens": telemetry.cached_tokens + telemetry.prompt_tokens,
            "generated_tokens": self.tokens,
            "prompt_tokens_per_second": telemetry.prompt_tokens_per_second,
            "generation_tokens_per_second": telemetry.generation_tokens_per_second,
            "approximations": [],
        }

    def _kept(self, pieces: list[Piece]) -> list[Piece]:
        self.thinking += "".join(piece.text for piece in pieces if piece.thinking)
        self.text += "".join(piece.text for piece in pieces if not piece.thinking)
        return pieces


def chat_prompt(
    template: "ChatTemplate", messages: Sequence[Mapping[str, Any]], thinking: bool | None, **extra: Any
) -> Prompt:
    """`extra`: `tools`, and further variables of the template."""
    return Prompt(*template.prompt(messages, thinking=thinking, **extra))


def text_prompt(tokenizer: "Tokenizer", text: str) -> Prompt:
    """Plain text, after begin-of-sequence where the file asks for it; the text of a control token stays text."""
    return Prompt(tokenizer.encode(text, bos=tokenizer.add_bos))


def check_room(prompt: Prompt, context: int, remedy: str) -> None:
    if len(prompt.ids) > context:
        raise RequestError(f"the prompt has {len(prompt.ids):,} tokens", f"the context holds {context:,}", remedy)
