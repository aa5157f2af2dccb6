"""Items of the conversation that POST /v1/responses goes on with, and what the chat template is told of them."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from hetero.server.fields import Name, OneOf, no_effect
from hetero.server.message_parts import Part, TextPart, text_of
from hetero.server.reasons import CACHED, READS_TEXT, STORED
from hetero.server.responses_tools import flat

KEPT_THERE = ("compaction", "compaction_trigger", "configuration_update", "item_reference")
RUN_THERE = (
    *("additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "computer_call"),
    *("computer_call_output", "file_search_call", "image_generation_call", "mcp_approval_request"),
    *("mcp_approval_response", "mcp_call", "mcp_list_tools", "program", "program_output", "shell_call"),
    *("shell_call_output", "tool_search_call", "tool_search_output", "web_search_call"),
)
TAKEN = (
    *("message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"),
    *("local_shell_call", "local_shell_call_output"),
)
OTHERS = dict.fromkeys(KEPT_THERE, STORED) | dict.fromkeys(RUN_THERE, "this tool cannot be had here")
TEXTS = ("input_text", "output_text", "reasoning_text", "summary_text", "refusal", "text")
OTHER_PARTS = ("input_image", "input_file", "input_audio", "computer_screenshot", "encrypted_content")


class ItemPart(TextPart):
    type: Annotated[str, OneOf(TEXTS, dict.fromkeys(OTHER_PARTS, READS_TEXT))]
    annotations: Any = no_effect("they are not part of the text")
    logprobs: Any = no_effect("they are not part of the text")
    prompt_cache_breakpoint: Any = no_effect(CACHED)


class Item(Part):
    """A part of the conversation."""

    type: Annotated[str, OneOf(TAKEN, OTHERS)] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ItemPart] | None = None
    call_id: Name | None = None
    name: Name | None = None
    namespace: Name | None = None
    arguments: str | None = None
    input: str | None = None
    action: dict[str, Any] | None = None
    output: str | list[ItemPart] | None = None
    id: Any = no_effect(STORED)
    status: Any = no_effect("every item is taken as it is")
    phase: Any = no_effect("an answer has one phase")
    summary: Any = no_effect("reasoning comes whole, in content")
    encrypted_content: Any = no_effect("reasoning comes in plain text")
    caller: Any = no_effect("every tool is called by the model itself")


def template_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """As chat templates take them; what the assistant thought, said and called in a row is one message."""
    messages: list[dict[str, Any]] = []
    for at, item in enumerate(items):
        add(item, f"input[{at}]", messages)
    return messages


def add(item: Item, path: str, messages: list[dict[str, Any]]) -> None:
    """Adds an item."""
    if item.type == "message":
        role = "system" if item.role == "developer" else item.needed("role", path)
        content = text_of(item.needed("content", path))
        if role != "assistant":
            messages.append({"role": role, "content": content})
        else:
            message = assistants(messages)
            message["content"] = message.get("content", "") + content
    elif item.type == "reasoning":
        if thought := text_of(item.content):
            message = assistants(messages)
            message["reasoning_content"] = message.get("reasoning_content", "") + thought
    elif item.type in ("function_call", "custom_tool_call", "local_shell_call"):
        call = {"id": item.needed("call_id", path), "type": "function", "function": called(item, path)}
        message = assistants(messages)
        message.setdefault("content", "")
        message.setdefault("tool_calls", []).append(call)
    else:  # an output
        content = text_of(item.needed("output", path))
        messages.append({"role": "tool", "tool_call_id": item.needed("call_id", path), "content": content})


def called(item: Item, path: str) -> dict[str, str]:
    """Whatever kind of tool it was: a call of a function, as the model knows no other."""
    if item.type == "local_shell_call":
        return {"name": "local_shell", "arguments": json.dumps(item.needed("action", path))}
    name = flat(item.namespace, item.needed("name", path))
    if item.type == "custom_tool_call":
        return {"name": name, "arguments": json.dumps({"input": item.needed("input", path)})}
    return {"name": name, "arguments": item.needed("arguments", path)}


def assistants(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The last message, where it is the assistant's; otherwise a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant"})
    return messages[-1]
