"""Messages as POST /v1/chat/completions has them, and what the chat template is told."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from hetero.server.fields import Form, Name, OneOf, no_effect, refuse
from hetero.server.message_parts import TextPart, check_count, text_of
from hetero.server.reasons import CACHED, READS_TEXT, TEXT_ONLY
from hetero.server.refusal import bad
from hetero.server.settings import Limits

THINKING = ("thinking", "enable_thinking")  # as other servers' clients say it
RESERVED = frozenset(
    ("self", "template", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "pad_token")
)
CallId = Annotated[str, StringConstraints(max_length=256)]  # empty ones are what some servers give

OTHER_PARTS = ("image_url", "input_audio", "file", "video_url", "audio_url")


class ChatPart(TextPart):
    type: Annotated[str, OneOf(("text", "refusal"), dict.fromkeys(OTHER_PARTS, READS_TEXT))]
    prompt_cache_breakpoint: Any = no_effect(CACHED)


class CalledFunction(Form):
    name: Name
    arguments: str = Field(description="JSON, as the model wrote it.")


class ToolCall(Form):
    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Any = no_effect("the order of the list counts")


class ChatMessage(Form):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ChatPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: CallId | None = None
    reasoning_content: str | None = Field(default=None, description="Extension: an earlier answer's reasoning.")
    name: Any = no_effect("the models' templates have no place for a name")
    refusal: Any = no_effect("a refusal is text")
    annotations: Any = no_effect("they are not part of the text")
    audio: Any = refuse(TEXT_ONLY)
    function_call: Any = refuse("the older form of tool_calls")
    prefix: bool | None = Field(default=None, description="Extension: the answer goes on with this one, the last.")


def template_messages(messages: list[ChatMessage], limits: Limits) -> tuple[dict[str, Any], ...]:
    """As chat templates take them."""
    check_count(messages, limits)
    return tuple(template_message(message, f"messages[{at}]") for at, message in enumerate(messages))


def template_message(message: ChatMessage, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    if message.content is None and message.role != "assistant":
        raise bad(f"{path}.content is missing", "only an assistant's message may go without", param=path)
    found["content"] = text_of(message.content)
    if message.role == "tool":
        if message.tool_call_id is None:
            raise bad(f"{path}.tool_call_id is missing", "a tool's answer names its call", param=path)
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        if message.role != "assistant":
            raise bad(f"{path} is a {message.role}'s and has tool_calls", "an assistant's may", param=path)
        calls = [(call.id, call.function) for call in message.tool_calls]
        found["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
            for id, one in calls
        ]
    if message.reasoning_content is not None:
        found["reasoning_content"] = message.reasoning_content
    return found


def template_variables(given: dict[str, Any]) -> dict[str, Any]:
    """For the chat template; what the server itself tells it is not among them."""
    for name in given:
        if name in RESERVED or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            limit = "it is no name of a variable, or one that the server sets"
            raise bad(f"chat_template_kwargs has {name[:64]!r}", limit, "leave it out", param="chat_template_kwargs")
    return {name: value for name, value in given.items() if name not in THINKING}
