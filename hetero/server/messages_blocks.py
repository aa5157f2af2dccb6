"""Messages of blocks, as POST /v1/messages has them, and what the chat template is told of them."""

import json
from typing import Annotated, Any, Literal

from hetero.server.fields import Form, Name, OneOf, no_effect, refuse
from hetero.server.message_parts import Part
from hetero.server.reasons import CACHED, READS_TEXT
from hetero.server.refusal import bad

TAKEN = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")
OTHERS = dict.fromkeys(("image", "document", "search_result", "container_upload"), READS_TEXT) | dict.fromkeys(
    (
        *("advisor_tool_result", "bash_code_execution_tool_result", "browser_state", "code_execution_tool_result"),
        *("compaction", "fallback", "mcp_tool_listing", "mcp_tool_result", "mcp_tool_use", "server_tool_use"),
        *("text_editor_code_execution_tool_result", "tool_addition", "tool_reference", "tool_removal"),
        *("tool_search_tool_result", "web_fetch_tool_result", "web_search_tool_result"),
    ),
    "it belongs to Anthropic's own service",
)


class Block(Part):
    """A part of a message."""

    type: Annotated[str, OneOf(TAKEN, OTHERS)]
    text: str | None = None
    thinking: str | None = None
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    content: "str | list[Block] | None" = None
    is_error: bool | None = None
    signature: Any = no_effect("reasoning is not signed")
    data: Any = no_effect("redacted reasoning cannot be read")
    cache_control: Any = no_effect(CACHED)
    caller: Any = no_effect("every tool is called by the model itself")
    citations: Any = refuse("there are no citations", [])
    toolset_name: Any = refuse("there are no toolsets")


class Turn(Form):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


def template_messages(turns: list[Turn]) -> list[dict[str, Any]]:
    """As chat templates take them."""
    return [message for at, turn in enumerate(turns) for message in of_turn(turn, f"messages[{at}]")]


def of_turn(turn: Turn, path: str) -> list[dict[str, Any]]:
    """A tool's results are messages of their own."""
    if isinstance(turn.content, str) or turn.role == "system":
        return [{"role": turn.role, "content": plain(turn.content, f"{path}.content")}]
    return assistants(turn.content, path) if turn.role == "assistant" else users(turn.content, path)


def users(blocks: list[Block], path: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for at, block in enumerate(blocks):
        where = f"{path}.content[{at}]"
        if block.type == "tool_result":
            content = plain(block.content, f"{where}.content")
            id = block.needed("tool_use_id", where)
            content = f"Error: {content}" if block.is_error else content
            messages.append({"role": "tool", "tool_call_id": id, "content": content})
        elif block.type != "text":
            limit = "text and tool_result may stand in a user's message"
            raise bad(f"{where}.type is {block.type!r}", limit, param=f"{where}.type")
        elif messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += block.needed("text", where)
        else:
            messages.append({"role": "user", "content": block.needed("text", where)})
    return messages


def assistants(blocks: list[Block], path: str) -> list[dict[str, Any]]:
    found: dict[str, Any] = {"role": "assistant", "content": ""}
    for at, block in enumerate(blocks):
        where = f"{path}.content[{at}]"
        if block.type == "text":
            found["content"] += block.needed("text", where)
        elif block.type == "thinking":
            found["reasoning_content"] = found.get("reasoning_content", "") + block.needed("thinking", where)
        elif block.type == "tool_use":
            called = {"name": block.needed("name", where), "arguments": json.dumps(block.needed("input", where))}
            call = {"id": block.needed("id", where), "type": "function", "function": called}
            found.setdefault("tool_calls", []).append(call)
        elif block.type == "tool_result":
            raise bad(f"{where}.type is 'tool_result'", "results stand in a user's message", param=f"{where}.type")
    return [found]


def plain(content: str | list[Block] | None, path: str) -> str:
    """Text and nothing else."""
    if not isinstance(content, list):
        return content or ""
    for at, block in enumerate(content):
        if block.type != "text":
            raise bad(f"{path}[{at}].type is {block.type!r}", "only text may stand here", param=f"{path}[{at}].type")
    return "".join(block.needed("text", f"{path}[{at}]") for at, block in enumerate(content))
