"""What POST /v1/chat/completions answers: a document, or chunks of one."""

from typing import TYPE_CHECKING, Any

from hetero.request import Generated
from hetero.server.choice import Delta, Finished, Progress, Said
from hetero.server.chunked_answer import FINISH, ChunkedAnswer, Wanted
from hetero.server.exchange import Exchange
from hetero.server.logprobs import shown_tokens
from hetero.server.tool_calls import CallArguments, CallStarted

if TYPE_CHECKING:
    from hetero.tokenizer import Tokenizer


class ChatAnswer(ChunkedAnswer):
    DOCUMENT, CHUNK = "chat.completion", "chat.completion.chunk"

    def __init__(self, exchange: Exchange, tokenizer: "Tokenizer", head: dict[str, Any], wanted: Wanted):
        super().__init__(exchange, tokenizer, head, wanted)
        self._named: set[int] = set()  # choices whose first chunk, which names the role, was sent

    def opening(self) -> list[bytes]:
        return []

    def push(self, index: int, delta: Delta) -> list[bytes]:
        if isinstance(delta, Progress):
            return self._read(delta)
        role = {} if index in self._named else {"role": "assistant", "content": ""}
        first = [self._chunk([choice(index, role)])] if role else []
        self._named.add(index)
        if isinstance(delta, Finished):
            return [*first, self._chunk([choice(index, {}, FINISH[delta.reason])])]
        if isinstance(delta, CallStarted):
            function = {"name": delta.name, "arguments": ""}
            call = {"index": delta.index, "id": delta.id, "type": "function", "function": function}
            return [*first, self._chunk([choice(index, {"tool_calls": [call]})])]
        if isinstance(delta, CallArguments):
            part = {"index": delta.index, "function": {"arguments": delta.delta}}
            return [*first, self._chunk([choice(index, {"tool_calls": [part]})])]
        if isinstance(delta, Said):
            name = "reasoning_content" if delta.thinking else "content"
            logprobs = self._shown(delta.tokens) if self._wanted.logprobs and not delta.thinking else None
            return [*first, self._chunk([choice(index, {name: delta.text}, logprobs=logprobs)])]
        return first

    def _choice(self, index: int, deltas: list[Delta]) -> dict[str, Any]:
        said = [delta for delta in deltas if isinstance(delta, Said)]
        (reason,) = [delta.reason for delta in deltas if isinstance(delta, Finished)]
        text = "".join(one.text for one in said if not one.thinking)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if reasoning := "".join(one.text for one in said if one.thinking):
            message["reasoning_content"] = reasoning
        if called := calls(deltas):
            message |= {"content": text or None, "tool_calls": called}
        tokens = [token for one in said for token in one.tokens]
        logprobs = self._shown(tuple(tokens)) if self._wanted.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": FINISH[reason]}

    def _shown(self, tokens: tuple[Generated, ...]) -> dict[str, Any]:
        return {"content": shown_tokens(self._tokenizer, tokens), "refusal": None}


def calls(deltas: list[Delta]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for delta in deltas:
        if isinstance(delta, CallStarted):
            found.append({"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": ""}})
        elif isinstance(delta, CallArguments):
            found[delta.index]["function"]["arguments"] += delta.delta
    return found


def choice(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
