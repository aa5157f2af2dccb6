"""What is wrong with a value of a request, in the words of JSON: which field, what was found, what it must be."""

import re
from collections.abc import Mapping
from reprlib import Repr
from typing import Any

from pydantic import ValidationError

from hetero.server.refusal import Refusal, bad
from placement.document import short

Path = list[int | str]
LIMITS = {  # of pydantic's complaints; {} is what the field's definition says
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a number",
    "float_type": "a number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "an object",
    "string_pattern_mismatch": "{length} letters, digits or any of _ - .",
    "string_too_long": "a string of at most {max_length} characters",
    "string_too_short": "a string of at least {min_length} character",
    "string_type": "a string",
    "string_unicode": "Unicode text, which has no lone surrogates",
}


class Spoken(Repr):
    """Python's notation, except where JSON's differs; strings that stand alone are in single quotes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_int(self, value: int, level: int) -> str:
        return short(value)

    def repr_str(self, value: str, level: int) -> str:
        found = super().repr_str(value, level)
        return found if level == self.maxlevel or '"' in found else f'"{found[1:-1]}"'


SPOKEN = Spoken()


def shown(value: Any) -> str:
    """At most 80 characters."""
    return f"{SPOKEN.repr(value):.80}"


def refused(error: ValidationError, document: Any) -> Refusal:
    """The most specific of the complaints: of a value that may have several forms, that of the form it came closest."""
    found = [(located(one["loc"], document, one["type"] == "missing"), one) for one in error.errors(include_url=False)]
    (path, value), one = max(found, key=lambda item: len(item[0][0]))
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if one["type"] == "missing":
        return bad(f"{param} is missing", "it is required", param=param)
    if one["type"] == "unsupported":
        said = f"{param} is {shown(value)}", f"not implemented: {one['msg']}", "leave it out"
        return bad(*said, param=param, code="unsupported_field")
    if one["type"] == "string_unicode" and isinstance(value, dict):
        name = f"a name in {param or 'the body'} has a lone surrogate"
        return bad(name, "names are Unicode text", param=param or None)
    limits = [limit(other["type"], other["msg"], other.get("ctx", {})) for (at, _), other in found if at == path]
    first = limit(one["type"], one["msg"], one.get("ctx", {}))
    alone = one["type"] == "value_error"
    wanted = first if alone else "it must be " + " or ".join(dict.fromkeys([first, *limits]))
    return bad(f"{param or 'the body'} is {shown(value)}", wanted, param=param or None)


def limit(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind not in LIMITS:
        return message.replace("Input should be ", "")
    values = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
    if length := re.search(r"\{(\d+),(\d+)\}", str(context.get("pattern", ""))):
        values["length"] = f"{length[1]} to {length[2]}"
    return LIMITS[kind].format(**values)


def located(location: tuple[int | str, ...], document: Any, missing: bool) -> tuple[Path, Any]:
    """The part of `location` that is a path in the document (names of alternatives lie between and after), and what is
    there. `missing`: the last name is one that should be there."""
    path: Path = []
    for at, part in enumerate(location):
        if isinstance(part, int):
            if not isinstance(document, list) or part >= len(document):
                continue
            document = document[part]
        elif not isinstance(document, dict):
            continue
        elif part in document:
            document = document[part]
        elif not missing or at < len(location) - 1:
            continue
        path.append(part)
    return path, document
