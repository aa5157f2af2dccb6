"""Options that several verbs have, and how sizes are read."""

from typing import Annotated

import typer
from typer import Option

Json = Annotated[bool, Option("--json", help="One JSON document on stdout.")]
System = Annotated[str | None, Option(help="System prompt.")]
Think = Annotated[bool | None, Option("--think/--no-think", help="Reason first [as the template does].")]


def size(text: str) -> int:
    from hetero.sizes import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def rate(text: str) -> int:
    return size(text.strip().removesuffix("/s"))
