"""`hetero inspect`: what a file holds."""

import json

from hetero.commands.model import File, path_of
from hetero.commands.options import Json


def inspect(model: File, as_json: Json = False) -> None:
    """Show what a file holds. Metadata, bytes and types by part of the model, bytes read per token."""
    from hetero.inspect import describe, inspect_file

    report = inspect_file(path_of(model))
    print(json.dumps(report, ensure_ascii=False, indent=1) if as_json else describe(report))
