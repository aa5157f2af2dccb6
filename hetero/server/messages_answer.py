"""What POST /v1/messages answers: Anthropic's message, or the events that build one."""

import json
from typing import Any, Literal

from hetero.server.choice import Delta, Finished, FinishReason, Progress, Said
from hetero.server.exchange import Exchange
from hetero.server.refusal import Refusal
from hetero.server.sse import compact, event
from hetero.server.tool_calls import CallArguments, CallEnded, CallStarted

SIGNATURE = "unsigned"  # clients send it back with the reasoning; nobody checks it
STOP_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn",
    "stop_string": "stop_sequence",
    "length": "max_tokens",
    "context": "model_context_window_exceeded",
    "tool_calls": "tool_use",
}
Kind = Literal["thinking", "text", "tool_use"]


class MessagesAnswer:
    """`head`: id and model. `hidden`: reasoning is not shown. There is one choice."""

    def __init__(self, exchange: Exchange, head: dict[str, Any], *, progress: bool = False, hidden: bool = False):
        self._exchange, self._progress, self._hidden = exchange, progress, hidden
        self._head = head | {"type": "message", "role": "assistant"}
        self._blocks: list[dict[str, Any]] = []
        self._open: Kind | None = None
        self._begun = False
        self._end: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}

    def opening(self) -> list[bytes]:
        return []

    def push(self, index: int, delta: Delta) -> list[bytes]:
        """The first delta comes when the sequence begins: what is cached is known then."""
        found: list[dict[str, Any]] = []
        if not self._begun:
            self._begun = True
            message = self._head | {"content": []} | self._end | {"usage": self._usage()}
            found.append({"type": "message_start", "message": message})
        if isinstance(delta, Progress) and self._progress:
            found.append({"type": "ping", "prompt_progress": delta.document()})
        elif isinstance(delta, Said):
            found += self._thought(delta.text) if delta.thinking else self._text(delta.text)
        elif isinstance(delta, CallStarted):
            found += self._start("tool_use", {"id": delta.id, "name": delta.name, "input": {}})
        elif isinstance(delta, CallArguments):
            self._blocks[-1]["json"] = self._blocks[-1].get("json", "") + delta.delta
            found.append(self._delta({"type": "input_json_delta", "partial_json": delta.delta}))
        elif isinstance(delta, CallEnded):
            found += self._stop()
        elif isinstance(delta, Finished):
            self._end = {"stop_reason": STOP_REASONS[delta.reason], "stop_sequence": delta.stop_string}
            found += self._stop()
        return [event(one, one["type"]) for one in found]

    def closing(self) -> list[bytes]:
        last = {"type": "message_delta", "delta": self._end, "usage": self._usage()}
        return [event(last, "message_delta"), event({"type": "message_stop"}, "message_stop")]

    def failed(self, refusal: Refusal) -> list[bytes]:
        return [event(refusal.document("/v1/messages", self._exchange.request_id), "error")]

    def document(self, deltas: list[tuple[int, Delta]]) -> bytes:
        for index, delta in deltas:
            self.push(index, delta)
        content = [block for block in map(whole, self._blocks) if block.get("text") != ""]
        return compact(self._head | {"content": content} | self._end | {"usage": self._usage()}).encode()

    def _usage(self) -> dict[str, Any]:
        used = self._exchange.usage
        return {
            "input_tokens": used.prompt_tokens - used.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": used.cached_tokens,
            "output_tokens": used.generated_tokens,
            "output_tokens_details": {"thinking_tokens": used.reasoning_tokens},
        }

    def _thought(self, text: str) -> list[dict[str, Any]]:
        found = self._start("thinking", {"thinking": "", "signature": ""}) if self._open != "thinking" else []
        if self._hidden:
            return found
        self._blocks[-1]["thinking"] += text
        return [*found, self._delta({"type": "thinking_delta", "thinking": text})]

    def _text(self, text: str) -> list[dict[str, Any]]:
        found = self._start("text", {"text": ""}) if self._open != "text" else []
        self._blocks[-1]["text"] += text
        return [*found, self._delta({"type": "text_delta", "text": text})]

    def _start(self, kind: Kind, content: dict[str, Any]) -> list[dict[str, Any]]:
        found = self._stop()
        self._open = kind
        self._blocks.append({"type": kind, **content})
        block = {"type": kind, **content}
        return [*found, {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block}]

    def _stop(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        signed = []
        if self._open == "thinking":
            self._blocks[-1]["signature"] = SIGNATURE
            signed = [self._delta({"type": "signature_delta", "signature": SIGNATURE})]
        self._open = None
        return [*signed, {"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}


def whole(block: dict[str, Any]) -> dict[str, Any]:
    """A tool's arguments, streamed as text, as the object they are; none of those that max_tokens cut off."""
    if block["type"] != "tool_use":
        return block
    try:
        arguments = json.loads(block.get("json") or "{}")
    except json.JSONDecodeError:
        arguments = {}
    rest = {name: value for name, value in block.items() if name != "json"}
    return rest | {"input": arguments if isinstance(arguments, dict) else {}}
