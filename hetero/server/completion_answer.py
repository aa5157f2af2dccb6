"""What POST /v1/completions answers: a document, or chunks of one."""

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from hetero.request import Generated
from hetero.server.choice import Delta, Finished, Progress, Said
from hetero.server.chunked_answer import FINISH, ChunkedAnswer, Wanted
from hetero.server.exchange import Exchange
from hetero.server.logprobs import finite

if TYPE_CHECKING:
    from hetero.tokenizer import Tokenizer


class CompletionAnswer(ChunkedAnswer):
    """`echo`: what each choice begins with."""

    DOCUMENT = CHUNK = "text_completion"

    def __init__(
        self, exchange: Exchange, tokenizer: "Tokenizer", head: dict[str, Any], wanted: Wanted, echo: list[str]
    ):
        super().__init__(exchange, tokenizer, head, wanted)
        self._echo = echo
        self._offsets = [len(text) for text in echo]  # characters of each choice that were sent

    def opening(self) -> list[bytes]:
        return [self._chunk([choice(index, text)]) for index, text in enumerate(self._echo) if text]

    def push(self, index: int, delta: Delta) -> list[bytes]:
        if isinstance(delta, Progress):
            return self._read(delta)
        if isinstance(delta, Finished):
            return [self._chunk([choice(index, "", reason=FINISH[delta.reason])])]
        if not isinstance(delta, Said):
            return []
        logprobs = self._shown(delta.tokens, self._offsets[index]) if self._wanted.logprobs else None
        self._offsets[index] += len(delta.text)
        return [self._chunk([choice(index, delta.text, logprobs)])]

    def _choice(self, index: int, deltas: list[Delta]) -> dict[str, Any]:
        said = [delta for delta in deltas if isinstance(delta, Said)]
        (reason,) = [delta.reason for delta in deltas if isinstance(delta, Finished)]
        tokens = tuple(token for one in said for token in one.tokens)
        logprobs = self._shown(tokens, self._offsets[index]) if self._wanted.logprobs else None
        return choice(index, self._echo[index] + "".join(one.text for one in said), logprobs, FINISH[reason])

    def _shown(self, tokens: tuple[Generated, ...], offset: int) -> dict[str, Any]:
        texts = [self._text(token.id) for token in tokens]
        *starts, _ = accumulate(map(len, texts), initial=offset)
        return {
            "tokens": texts,
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": starts,
        }

    def _top(self, token: Generated) -> dict[str, float | None]:
        """The most probable ones, and always the one that was taken."""
        return {self._text(id): finite(value) for id, value in (*token.top, (token.id, token.logprob))}

    def _text(self, id: int) -> str:
        return self._tokenizer.token_bytes(id).decode(errors="replace")


def choice(index: int, text: str, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
