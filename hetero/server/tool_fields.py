"""Tools that a request offers, and which of them the answer may or must call."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from hetero.server.ask import ToolChoice, Tools
from hetero.server.refusal import bad
from hetero.server.settings import Limits

STRICT = "A schema of which a part cannot be enforced is refused; otherwise that part is left out."
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_\-.]{1,64}$")]
DEFINITION = {"name", "description", "parameters", "strict"}  # what the model is told of a function


def offered(definitions: Sequence[dict[str, Any]], choice: ToolChoice, parallel: bool, limits: Limits) -> Tools:
    """`definitions`: {"name", "description", "parameters", "strict"} each, all but the name where they are known.

    Refusal: too many, two of one name, or a choice that cannot be made among them.
    """
    if len(definitions) > limits.tools:
        raise bad(f"there are {len(definitions)} tools", f"at most {limits.tools}", param="tools")
    names = {one["name"] for one in definitions}
    if len(names) < len(definitions):
        raise bad("two tools have the same name", "names are unique", param="tools")
    if isinstance(choice, tuple) and choice[0] not in names:
        raise bad(f"tool_choice names {choice[0]!r}", "it must be one of tools", param="tool_choice")
    if choice == "required" and not names:
        raise bad("tool_choice asks for a call", "there are no tools", param="tool_choice")
    functions = tuple({"type": "function", "function": definition} for definition in definitions)
    return Tools(functions, choice, parallel)
