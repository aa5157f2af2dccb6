"""`hetero doctor`: whether this machine can do it."""

import json

import typer

from hetero.commands.options import Json


def doctor(as_json: Json = False) -> None:
    """Check this machine and every kernel on it. Each line says OK, or what to do."""
    from hetero.doctor import describe, examine
    from hetero.terminal import Screen

    document = examine(Screen())
    print(json.dumps(document, ensure_ascii=False, indent=1) if as_json else describe(document))
    if document["broken"]:
        raise typer.Exit(1)
