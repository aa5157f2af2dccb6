"""What POST /v1/responses answers: a response of items, or the events that build it."""

import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hetero.request import Generated
from hetero.server.choice import Delta, Finished, Said
from hetero.server.exchange import Exchange
from hetero.server.logprobs import shown_tokens
from hetero.server.refusal import Refusal
from hetero.server.sse import compact, event
from hetero.server.tool_calls import CallArguments, CallEnded, CallStarted

if TYPE_CHECKING:
    from hetero.tokenizer import Tokenizer

Events = list[dict[str, Any]]
PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}


class ResponsesAnswer:
    """`head`: id, created_at, model and the settings that were asked for. `namespaces`: the model's name of a function
    to its namespace and its name there. There is one choice."""

    def __init__(
        self,
        exchange: Exchange,
        tokenizer: "Tokenizer",
        head: dict[str, Any],
        namespaces: Mapping[str, tuple[str, str]],
        *,
        logprobs: bool,
    ):
        self._exchange, self._tokenizer, self._logprobs = exchange, tokenizer, logprobs
        self._namespaces = namespaces
        self._response = {"object": "response", "error": None, "incomplete_details": None, **head}
        self._response |= {"status": "in_progress", "completed_at": None, "output": [], "usage": None}
        self._items: list[dict[str, Any]] = self._response["output"]
        self._open = False  # whether the last item still grows
        self._number = 0

    def opening(self) -> list[bytes]:
        states = ("response.created", "response.in_progress")
        return self._sent([{"type": state, "response": self._response} for state in states])

    def push(self, index: int, delta: Delta) -> list[bytes]:
        return self._sent(self._events(delta))

    def closing(self) -> list[bytes]:
        return self._sent([{"type": f"response.{self._response['status']}", "response": self._response}])

    def failed(self, refusal: Refusal) -> list[bytes]:
        error = {"code": "server_error", "message": refusal.message}
        self._response |= {"status": "failed", "error": error, "usage": self._usage()}
        return self._sent([{"type": "response.failed", "response": self._response}])

    def document(self, deltas: list[tuple[int, Delta]]) -> bytes:
        for _, delta in deltas:
            self._events(delta)
        return compact(self._response).encode()

    def _events(self, delta: Delta) -> Events:
        if isinstance(delta, Said):
            return self._thought(delta.text) if delta.thinking else self._text(delta)
        if isinstance(delta, CallStarted):
            space, name = self._namespaces.get(delta.name, (None, delta.name))
            call = {"call_id": delta.id, "name": name, "arguments": ""}
            return self._start("function_call", call if space is None else call | {"namespace": space})
        if isinstance(delta, CallArguments):
            self._items[-1]["arguments"] += delta.delta
            return [self._at_item("response.function_call_arguments.delta", delta=delta.delta)]
        if isinstance(delta, CallEnded):
            return self._stop()
        return self._finish(delta) if isinstance(delta, Finished) else []

    def _finish(self, delta: Finished) -> Events:
        cut = delta.reason in ("length", "context")
        found = self._stop("incomplete" if cut else "completed")
        self._response |= {"status": "incomplete" if cut else "completed", "usage": self._usage()}
        if cut:
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self._response["completed_at"] = int(time.time())
        return found

    def _thought(self, text: str) -> Events:
        found = [] if self._grows("reasoning") else self._start("reasoning", {"summary": [], "content": []})
        if not self._items[-1]["content"]:
            found.append(self._part({"type": "reasoning_text", "text": ""}))
        self._items[-1]["content"][0]["text"] += text
        return [*found, self._at_part("response.reasoning_text.delta", delta=text)]

    def _text(self, delta: Said) -> Events:
        found = [] if self._grows("message") else self._start("message", {"role": "assistant", "content": []})
        if not self._items[-1]["content"]:
            found.append(self._part({"type": "output_text", "text": "", "annotations": [], "logprobs": []}))
        logprobs = self._shown(delta.tokens)
        self._items[-1]["content"][0]["text"] += delta.text
        self._items[-1]["content"][0]["logprobs"] += logprobs
        return [*found, self._at_part("response.output_text.delta", delta=delta.text, logprobs=logprobs)]

    def _grows(self, kind: str) -> bool:
        return self._open and self._items[-1]["type"] == kind

    def _start(self, kind: str, content: dict[str, Any]) -> Events:
        found = self._stop()
        item = {"id": PREFIXES[kind] + secrets.token_hex(12), "type": kind, "status": "in_progress", **content}
        self._items.append(item)
        self._open = True
        added = {"type": "response.output_item.added", "output_index": len(self._items) - 1, "item": copy(item)}
        return [*found, added]

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        self._items[-1]["content"].append(part)
        return self._at_part("response.content_part.added", part=dict(part))

    def _stop(self, status: str = "completed") -> Events:
        if not self._open:
            return []
        self._open = False
        item = self._items[-1]
        item["status"] = status
        found: Events = []
        if item["type"] == "function_call":
            found.append(self._at_item("response.function_call_arguments.done", arguments=item["arguments"]))
        for part in item.get("content", []):
            name = "output_text" if item["type"] == "message" else "reasoning_text"
            extra = {"logprobs": part["logprobs"]} if name == "output_text" else {}
            found.append(self._at_part(f"response.{name}.done", text=part["text"], **extra))
            found.append(self._at_part("response.content_part.done", part=dict(part)))
        done = {"type": "response.output_item.done", "output_index": len(self._items) - 1, "item": copy(item)}
        return [*found, done]

    def _at_item(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, **more}

    def _at_part(self, kind: str, **more: Any) -> dict[str, Any]:
        return self._at_item(kind, content_index=0, **more)

    def _shown(self, tokens: tuple[Generated, ...]) -> list[dict[str, Any]]:
        return shown_tokens(self._tokenizer, tokens) if self._logprobs else []

    def _sent(self, events: Events) -> list[bytes]:
        numbered = []
        for one in events:
            numbered.append(event({**one, "sequence_number": self._number}, one["type"]))
            self._number += 1
        return numbered

    def _usage(self) -> dict[str, Any]:
        used = self._exchange.usage
        return {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": used.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
            "total_tokens": used.prompt_tokens + used.generated_tokens,
        }


def copy(item: dict[str, Any]) -> dict[str, Any]:
    """As it is now; the item itself grows."""
    return {name: list(value) if isinstance(value, list) else value for name, value in item.items()}
