"""Tools as POST /v1/responses has them: functions, alone or in namespaces.

The model knows no namespaces: it is told of `NAMESPACE__NAME`, and the client of a call by both, as it sent them. Codex
sends the tools of each MCP server as a namespace and finds a call by both: github.com/openai/codex, issue 23186.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from hetero.server.ask import ToolChoice, Tools
from hetero.server.fields import Form, Name, no_effect, refuse
from hetero.server.reasons import BY_THE_MODEL
from hetero.server.settings import Limits
from hetero.server.tool_fields import (
    DEFINITION,
    STRICT,
    FunctionName,
    OtherChoice,
    OtherTool,
    Word,
    choice_kind,
    offered,
    tool_kind,
    type_of,
)


class FunctionTool(Form):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description=STRICT)
    output_schema: Any = no_effect("what a tool gives is text for the model")
    allowed_callers: Any = refuse(BY_THE_MODEL, ["direct"])
    defer_loading: Any = no_effect("every tool is in the prompt")


class Namespace(Form):
    type: Literal["namespace"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_\-.]{1,62}$")]
    tools: list[
        Annotated[
            Annotated[FunctionTool, Tag("a function")] | Annotated[OtherTool, Tag("another")], Discriminator(tool_kind)
        ]
    ]
    description: Any = no_effect("each function has its own")


class NamedChoice(Form):
    type: Literal["function"]
    name: Name


class AllowedChoice(Form):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1)]


Tool = Annotated[
    Annotated[FunctionTool, Tag("a function")]
    | Annotated[Namespace, Tag("a namespace")]
    | Annotated[OtherTool, Tag("another")],
    Discriminator(lambda tool: "a namespace" if type_of(tool) == "namespace" else tool_kind(tool)),
]
Choice = Annotated[
    Annotated[Word, Tag("a word")]
    | Annotated[NamedChoice, Tag("a function")]
    | Annotated[AllowedChoice, Tag("some functions")]
    | Annotated[OtherChoice, Tag("another")],
    Discriminator(choice_kind),
]


def flat(namespace: str | None, name: str) -> str:
    """What the model calls it. Some namespaces end in the separator already."""
    if namespace is None:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def functions(tools: Sequence[Form]) -> list[tuple[str | None, FunctionTool]]:
    """Each with the namespace that it is in."""
    found: list[tuple[str | None, FunctionTool]] = []
    for tool in tools:
        if isinstance(tool, FunctionTool):
            found.append((None, tool))
        elif isinstance(tool, Namespace):
            found += [(tool.name, one) for one in tool.tools if isinstance(one, FunctionTool)]
    return found


def namespaces(tools: Sequence[Form]) -> dict[str, tuple[str, str]]:
    """The model's name of each function in a namespace: to namespace and name."""
    return {flat(space, one.name): (space, one.name) for space, one in functions(tools) if space is not None}


def tools_of(
    tools: Sequence[Form],
    choice: Word | NamedChoice | AllowedChoice | OtherChoice | None,
    parallel: bool,
    limits: Limits,
) -> Tools:
    allowed = None
    if isinstance(choice, OtherChoice):
        choice.refuse()
    if isinstance(choice, AllowedChoice):
        allowed, choice = tuple(one.name for one in choice.tools), choice.mode
    named: ToolChoice = (choice.name,) if isinstance(choice, NamedChoice) else choice or "auto"
    definitions = [
        one.model_dump(include=DEFINITION, exclude_none=True) | {"name": flat(space, one.name)}
        for space, one in functions(tools)
    ]
    return offered(tools, definitions, named, parallel, limits, allowed)


def shown(tools: Sequence[Form]) -> list[dict[str, Any]]:
    """As a response repeats them: those that are offered."""
    found: list[dict[str, Any]] = []
    for tool in tools:
        if isinstance(tool, Namespace):
            inner = {"tools": shown(tool.tools), "description": tool.description or ""}
            found.append({"type": tool.type, "name": tool.name} | inner)
        elif isinstance(tool, FunctionTool):
            found.append({"strict": True, "parameters": None} | tool.model_dump(exclude_unset=True, exclude_none=True))
    return found
