"""Fields that say what form a chat's answer has: OpenAI's, and what other servers' clients call the same."""

from typing import Any, Literal

from pydantic import Field

from hetero.server.ask import JsonFormat
from hetero.server.fields import Form, Name, refuse
from hetero.server.refusal import bad
from hetero.server.tool_fields import STRICT

JSON_ONLY = "the form of an answer is given by a JSON schema"


class JsonSchema(Form):
    name: Name
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = Field(default=None, description=STRICT)


class ResponseFormat(Form):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", description="Extension: as json_schema.schema, with either type."
    )

    def layout(self) -> JsonFormat | None:
        if self.type == "text":
            return None
        if self.json_schema is not None and self.type == "json_schema":
            schema = self.json_schema.schema_
            return JsonFormat({} if schema is None else schema, bool(self.json_schema.strict))
        if self.type == "json_schema" and self.schema_ is None:
            raise bad("response_format.json_schema is missing", "json_schema needs one", param="response_format")
        return JsonFormat(self.schema_)


class StructuredOutputs(Form):
    """As vLLM's clients say it."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Any = refuse(JSON_ONLY)
    choice: Any = refuse(JSON_ONLY)
    grammar: Any = refuse(JSON_ONLY)
    structural_tag: Any = refuse(JSON_ONLY)

    def layout(self) -> JsonFormat | None:
        return JsonFormat(self.json_) if self.json_ is not None or self.json_object else None


class OtherForms(Form):
    """Which the server does not enforce, as others' clients name them."""

    grammar: Any = refuse(JSON_ONLY, "")
    guided_choice: Any = refuse(JSON_ONLY)
    guided_grammar: Any = refuse(JSON_ONLY)
    guided_regex: Any = refuse(JSON_ONLY)


class FormatFields(OtherForms):
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | None = Field(default=None, description="Extension: the schema of a response_format.")
    json_schema: dict[str, Any] | None = Field(default=None, description="Extension: the schema of a response_format.")
    structured_outputs: StructuredOutputs | None = Field(default=None, description="Extension: `json`, `json_object`.")

    def layout(self) -> JsonFormat | None:
        """Refusal of two at once."""
        found = {
            "response_format": self.response_format.layout() if self.response_format else None,
            "guided_json": None if self.guided_json is None else JsonFormat(self.guided_json),
            "json_schema": None if self.json_schema is None else JsonFormat(self.json_schema),
            "structured_outputs": self.structured_outputs.layout() if self.structured_outputs else None,
        }
        names = [name for name, one in found.items() if one is not None]
        if len(names) > 1:
            raise bad(f"{names[1]} beside {names[0]}", "an answer has one form", "leave one out", param=names[1])
        return found[names[0]] if names else None
