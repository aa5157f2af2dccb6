"""Tools that a request offers, and which of them the answer may or must call."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, ConfigDict, Field

from hetero.server.ask import ToolChoice, Tools
from hetero.server.fields import Form
from hetero.server.refusal import bad
from hetero.server.settings import Limits

STRICT = "A schema of which a part cannot be enforced is refused; otherwise that part is left out."
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_\-.]{1,64}$")]
DEFINITION = {"name", "description", "parameters", "strict"}  # what the model is told of a function
FUNCTIONS_ONLY = "the server runs no tools itself, and the model is offered functions only"
OTHERS = re.compile(  # OpenAI's and Anthropic's; many are named with the day of their version
    "(advisor|apply_patch|bash|browser_toolset|code_execution|code_interpreter|computer|computer_toolset|computer_use"
    "|custom|file_search|image_generation|local_shell|mcp|mcp_toolset|memory|programmatic_tool_calling|shell"
    "|text_editor|tool_search|tool_search_tool_bm25|tool_search_tool_regex|web_fetch|web_search)"
    r"(_preview)?(_20\d\d_?\d\d_?\d\d)?"
)
Word = Literal["none", "auto", "required"]


def known(kind: str) -> str:
    if not OTHERS.fullmatch(kind):
        function = "'function' ('custom' in /v1/messages)"
        raise ValueError(f"it must be {function}, or a tool of OpenAI's or Anthropic's services")
    return kind


class OtherTool(Form):
    """One that their services run, or that has no schema: clients send it with their functions, whether it can be had
    or not. The model is not told of it, and the client is told that."""

    model_config = ConfigDict(extra="ignore")
    type: Annotated[str, AfterValidator(known)]

    def left_out(self, path: str) -> list[str]:
        return [f"{path}{self.type}: not offered"]


class OtherChoice(Form):
    """Of such a tool."""

    model_config = ConfigDict(extra="ignore")
    type: Annotated[str, AfterValidator(known)]

    def refuse(self) -> NoReturn:
        found, param = f"tool_choice.type is {self.type!r}", "tool_choice.type"
        limit = f"not implemented: {FUNCTIONS_ONLY}"
        raise bad(found, limit, "name a function, or leave it out", param=param, code="unsupported_field")


def type_of(tool: Any) -> Any:
    return tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)


def tool_kind(tool: Any) -> str:
    return "a function" if type_of(tool) == "function" else "another"


def choice_kind(choice: Any) -> str:
    if not isinstance(choice, (dict, Form)):
        return "a word"
    return "some functions" if type_of(choice) == "allowed_tools" else tool_kind(choice)


def offered(
    tools: Sequence[Form],
    definitions: Sequence[dict[str, Any]],
    choice: ToolChoice,
    parallel: bool,
    limits: Limits,
    allowed: tuple[str, ...] | None = None,
) -> Tools:
    """`definitions`: of the functions among the tools, {"name", "description", "parameters", "strict"} each, all but
    the name where they are known. `allowed`: the names of those that may be called; None: any.

    Refusal: too many, two of one name, none where others are asked for, or a choice that cannot be made among them.
    """
    if len(definitions) > limits.tools:
        raise bad(f"there are {len(definitions)} tools", f"at most {limits.tools}", "offer fewer", param="tools")
    for at, tool in enumerate(tools):
        if isinstance(tool, OtherTool) and not definitions and choice != "none":
            found, param = f"tools[{at}].type is {tool.type!r}", f"tools[{at}].type"
            raise bad(found, FUNCTIONS_ONLY, "leave it out", param=param, code="unsupported_field")
    names = {one["name"] for one in definitions}
    if len(names) < len(definitions):
        raise bad("two tools have the same name", "names are unique", param="tools")
    named = choice if isinstance(choice, tuple) else allowed or ()
    if unknown := [name for name in named if name not in names]:
        raise bad(f"tool_choice names {unknown[0]!r}", "it must be one of tools", param="tool_choice")
    if choice == "required" and not names:
        raise bad("tool_choice asks for a call", "there are no tools", param="tool_choice")
    functions = tuple({"type": "function", "function": definition} for definition in definitions)
    return Tools(functions, choice, parallel, allowed)
