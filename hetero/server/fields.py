"""What the fields of a request's body are: taken, without effect here, refused by name, or unknown.

Every field that OpenAI's and Anthropic's clients know is declared, so that none is ignored in silence; what nobody
declares is taken as unknown, reported, and has no effect.
"""

import re
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, StringConstraints, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from hetero.server.refusal import Refusal, bad
from placement.document import short

INDEX = re.compile(r"\[\d+\]")
Support = Literal["taken", "no effect", "refused"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def stop_early(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "dict"):
            schema["fail_fast"] = True
        for inner in schema.values():
            stop_early(inner)
    elif isinstance(schema, list):
        for inner in schema:
            stop_early(inner)


class Form(BaseModel):
    """A JSON object of a request. Strict: a number in quotes is no number."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Of a list, the first value that is wrong is complaint enough: a million cost seconds and gigabytes."""
        schema = handler(source)
        stop_early(schema)
        return schema

    @classmethod
    def read(cls, document: Any) -> Self:
        """Refusal (400) that names the field, what was found and what is allowed."""
        if not isinstance(document, dict):
            raise bad(f"the body is {short(document)}", "it must be a JSON object")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise refused(error, document) from None

    def unknown(self) -> list[str]:
        """Dotted names of the fields that nobody declares, inner ones too, and of what is taken and left out."""
        return list(dict.fromkeys(name for path, part in walk(self, "") for name in part.left_out(path)))

    def left_out(self, path: str) -> list[str]:
        """Of this object, which is at `path`: "messages[3]."; the same field of all of a list has one name."""
        reported = [name for name in reported_fields(type(self)) if getattr(self, name) is not None]
        return [INDEX.sub("[]", path) + name for name in (*reported, *(self.model_extra or {}))]


def walk(value: Any, path: str) -> list[tuple[str, Form]]:
    """The forms in it, and where: "", "messages[3].", "messages[3].content[0]."."""
    if isinstance(value, Form):
        inner = [(getattr(value, name), f"{path}{name}") for name in type(value).model_fields]
        return [(path, value), *(found for part, name in inner for found in walk(part, f"{name}."))]
    if isinstance(value, list):
        inside = [(at, part) for at, part in enumerate(value) if isinstance(part, (Form, list))]
        return [found for at, part in inside for found in walk(part, f"{path.removesuffix('.')}[{at}].")]
    return []


@cache
def reported_fields(form: type[Form]) -> tuple[str, ...]:
    declared = {name: field.json_schema_extra for name, field in form.model_fields.items()}
    return tuple(name for name, extra in declared.items() if isinstance(extra, dict) and extra.get("x-reported"))


def no_effect(why: str, reported: bool = False) -> Any:
    """Nothing here depends on this field: any value is taken. `reported`: it asks for something, so that it is named
    as unknown fields are."""
    extra: dict[str, Any] = {"x-support": "no effect"} | ({"x-reported": True} if reported else {})
    return Field(default=None, description=f"No effect: {why}.", json_schema_extra=extra)


def refuse(why: str, *neutral: Any) -> Any:
    """Only None and the `neutral` values are taken, which ask for nothing."""
    extra: dict[str, Any] = {"x-support": "refused", "x-neutral": list(neutral)}
    return Field(default=None, description=f"Refused: {why}.", json_schema_extra=extra)


def support(field: FieldInfo) -> Support:
    found = (field.json_schema_extra or {}).get("x-support") if not callable(field.json_schema_extra) else None
    return "refused" if found == "refused" else "no effect" if found == "no effect" else "taken"


def check_refused(form: Form) -> None:
    """Refuses, by its name, the first field that is not implemented and asks for something."""
    for path, part in walk(form, ""):
        for name, field in type(part).model_fields.items():
            value = getattr(part, name)
            if support(field) != "refused" or value is None:
                continue
            extra = field.json_schema_extra
            neutral = extra.get("x-neutral", []) if isinstance(extra, dict) else []
            assert isinstance(neutral, list), "written above"
            if not any(type(value) is type(one) and value == one for one in neutral):
                allowed = " or ".join(short(one) for one in neutral)
                found = f"{path}{name} is {short(value)}"
                limit = (field.description or "").removeprefix("Refused: ").removesuffix(".")
                remedy = "leave it out" + (f", or say {allowed}" if allowed else "")
                raise bad(found, f"not implemented: {limit}", remedy, param=f"{path}{name}", code="unsupported_field")


def refused(error: ValidationError, document: Any) -> Refusal:
    """The most specific of the complaints: of a value that may have several forms, that of the form it came closest."""
    found = [(located(one["loc"], document), one) for one in error.errors(include_url=False, include_context=False)]
    (path, value), one = max(found, key=lambda item: len(item[0][0]))
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if one["type"] == "missing":
        return bad(f"{param} is missing", "it is required", param=param)
    limit = one["msg"].replace("Input should be", "it must be").replace("Value error, ", "")
    if one["type"] == "union_tag_invalid":
        limit = limit.replace("Input tag", "the type")
    others = [other for (where, _), other in found if where == path and other is not one]
    if one["type"] != "value_error" and others:
        limits = [limit, *(other["msg"].replace("Input should be", "it must be") for other in others)]
        limit = " or ".join(dict.fromkeys(limits)).replace(" or it must be", " or")
    return bad(f"{param or 'the body'} is {short(value)}", limit, param=param or None)


def located(location: tuple[int | str, ...], document: Any) -> tuple[list[int | str], Any]:
    """The part of `location` that is a path in the document (names of alternatives lie between), and what is there."""
    path: list[int | str] = []
    for at, part in enumerate(location):
        if isinstance(part, int):
            if not isinstance(document, list) or part >= len(document):
                continue
            document = document[part]
        elif not isinstance(document, dict):
            continue
        elif part in document:
            document = document[part]
        elif at < len(location) - 1:
            continue
        path.append(part)
    return path, document
