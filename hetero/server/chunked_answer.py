"""What /v1/chat/completions and /v1/completions answer alike: chunks of one head, choices, usage."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hetero.server.choice import Delta, FinishReason, Progress, Usage
from hetero.server.exchange import Exchange
from hetero.server.refusal import Refusal
from hetero.server.sse import compact, event

if TYPE_CHECKING:
    from hetero.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
FINISH: dict[FinishReason, str] = {
    "stop": "stop",
    "stop_string": "stop",
    "length": "length",
    "context": "length",
    "tool_calls": "tool_calls",
}


@dataclass(frozen=True)
class Wanted:
    """What a client asks to be told beside the text; usage and progress are of a stream."""

    usage: bool
    progress: bool
    logprobs: bool


class ChunkedAnswer(ABC):
    """`head`: id, created and model, which are the same in each chunk."""

    DOCUMENT: ClassVar[str]
    CHUNK: ClassVar[str]

    def __init__(self, exchange: Exchange, tokenizer: "Tokenizer", head: dict[str, Any], wanted: Wanted):
        self._exchange, self._tokenizer, self._head, self._wanted = exchange, tokenizer, head, wanted

    def closing(self) -> list[bytes]:
        last = [self._chunk([], usage=usage(self._exchange.usage))] if self._wanted.usage else []
        return [*last, DONE]

    def failed(self, refusal: Refusal) -> list[bytes]:
        return [event(refusal.document("", ""))]

    def document(self, deltas: list[tuple[int, Delta]]) -> bytes:
        indices = range(len(self._exchange.choices))
        choices = [self._choice(index, [delta for at, delta in deltas if at == index]) for index in indices]
        found = self._head | {"object": self.DOCUMENT, "choices": choices}
        return compact(found | {"usage": usage(self._exchange.usage)}).encode()

    @abstractmethod
    def _choice(self, index: int, deltas: list[Delta]) -> dict[str, Any]:
        """All of it."""

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        empty = {"usage": None} if self._wanted.usage else {}
        return event(self._head | {"object": self.CHUNK, "choices": choices} | empty | more)

    def _read(self, progress: Progress) -> list[bytes]:
        return [self._chunk([], prompt_progress=progress.document())] if self._wanted.progress else []


def usage(used: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.generated_tokens,
        "total_tokens": used.prompt_tokens + used.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
    }
