"""From messages or plain text to a streamed answer: the edge where text becomes token ids and ids become text again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hetero.errors import RequestError
from hetero.sampler import Sampling, StopStrings
from hetero.thinking import Piece, ThinkingSplitter

if TYPE_CHECKING:
    from hetero.conversation import Message
    from hetero.engine import Engine
    from hetero.template import ChatTemplate
    from hetero.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    ids: Sequence[int]
    opens_thinking: bool | None = None  # None: plain text, in which `<think>` means nothing


class Answer:
    """Iterate for the pieces as they are generated; `text`, `thinking` and `finish_reason` are complete afterwards.

    `finish_reason` is "length" at max_tokens or the end of the context, and "interrupted" when iteration was cut short.
    """

    def __init__(self, engine: "Engine", tokenizer: "Tokenizer", prompt: Prompt, sampling: Sampling):
        self.text, self.thinking = "", ""
        self.tokens = 0
        self.finish_reason: Literal["stop", "length", "interrupted"] = "interrupted"
        self._engine, self._tokenizer = engine, tokenizer
        self._stop = StopStrings(sampling.stop)
        self._splitter = None if prompt.opens_thinking is None else ThinkingSplitter(prompt.opens_thinking)
        room = engine.context - len(prompt.ids) + 1  # as the engine counts: the last token generated is never cached
        self._limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        self._ids = engine.generate(prompt.ids, sampling, tokenizer.stop_ids)

    def __iter__(self) -> Iterator[Piece]:
        # Control tokens other than stop ids stay visible, except in plain text; `</think>` may be one of them.
        stream = self._tokenizer.stream(skip_special=self._splitter is None)
        stopped = False
        for id in self._ids:
            self.tokens += 1
            pieces, stopped = self._stopped(self._split(stream.push(id)))
            yield from pieces
            if stopped:
                break
        if not stopped:
            pieces, stopped = self._stopped(self._split(stream.flush(), last=True), last=True)
            yield from pieces
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

    def _split(self, text: str, last: bool = False) -> list[Piece]:
        if self._splitter is None:
            return [Piece(text, False)] if text else []
        return self._splitter.push(text) + (self._splitter.flush() if last else [])

    def _stopped(self, pieces: list[Piece], last: bool = False) -> tuple[list[Piece], bool]:
        """Stop strings look at the answer only, not at the thinking. Returns what may be shown, and whether to stop."""
        shown, stopped = [], False
        for piece in pieces:
            if piece.thinking:
                shown.append(piece)
                continue
            text, stopped = self._stop.push(piece.text)
            shown.append(Piece(text, False))
            if stopped:
                break
        if last and not stopped:
            shown.append(Piece(self._stop.flush(), False))
        shown = [piece for piece in shown if piece.text]
        self.thinking += "".join(piece.text for piece in shown if piece.thinking)
        self.text += "".join(piece.text for piece in shown if not piece.thinking)
        return shown, stopped


def chat_prompt(template: "ChatTemplate", messages: list["Message"], thinking: bool | None) -> Prompt:
    opens_thinking = template.opens_thinking(template.render(messages, thinking=thinking))
    return Prompt(template.encode(messages, thinking=thinking), opens_thinking)


def text_prompt(tokenizer: "Tokenizer", text: str) -> Prompt:
    """Plain text, after begin-of-sequence where the file asks for it; the text of a control token stays text."""
    return Prompt(tokenizer.encode(text, bos=tokenizer.add_bos))


def check_room(prompt: Prompt, context: int, remedy: str) -> None:
    if len(prompt.ids) > context:
        raise RequestError(f"the prompt has {len(prompt.ids):,} tokens", f"the context holds {context:,}", remedy)
