"""JSON documents that people hand in: plans that were edited, counts of experts."""

import json
from typing import Any

from hetero.errors import RequestError

MOST_BYTES = 16 << 20  # the plan of a model of 671B parameters has 0.3 MB


def read_document(path: str) -> Any:
    """The JSON document in a file. Raises RequestError."""
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise RequestError(f"{path} is no plan and no counts", f"they have at most {MOST_BYTES} bytes", "check it")
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_no_number)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}", "", "check the path") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no JSON document: {error!s:.80}", "", "write it anew") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r:.40} is there twice")
        found[name] = value
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number there")
