"""What the fields of a request's body are: taken, without effect here, refused by name, or unknown.

Every field that OpenAI's and Anthropic's clients know is declared, so that none is ignored in silence; what nobody
declares is taken as unknown, reported, and has no effect.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from hetero.server.complaint import refused, shown
from hetero.server.refusal import bad

INDEX = re.compile(r"\[\d+\]")
Support = Literal["taken", "no effect", "refused"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


@dataclass(frozen=True, eq=False)
class OneOf:
    """Of a part's type: `taken`, or known, and refused for a reason."""

    taken: tuple[str, ...]
    refused: Mapping[str, str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | {"enum": list(self.taken)}

    def checked(self, kind: str) -> str:
        if kind in self.refused:
            raise PydanticCustomError("unsupported", "{why}", {"why": self.refused[kind]})
        if kind not in self.taken:
            names = [f"'{name}'" for name in self.taken]
            raise ValueError(f"it must be {' or '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}")
        return kind


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
            raise bad(f"the body is {shown(document)}", "it must be a JSON object")
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
                allowed = " or ".join(shown(one) for one in neutral)
                found = f"{path}{name} is {shown(value)}"
                limit = (field.description or "").removeprefix("Refused: ").removesuffix(".")
                remedy = "leave it out" + (f", or say {allowed}" if allowed else "")
                raise bad(found, f"not implemented: {limit}", remedy, param=f"{path}{name}", code="unsupported_field")
