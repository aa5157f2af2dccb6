"""What messages are made of, whatever the interface."""

from collections.abc import Sequence
from typing import Any

from hetero.server.fields import Form
from hetero.server.refusal import bad
from hetero.server.settings import Limits


class Part(Form):
    """Which fields it has is a matter of its type."""

    type: str

    def needed(self, name: str, path: str) -> Any:
        """A field's value. Refusal where there is none: parts of this type have it."""
        value = getattr(self, name)
        if value is None:
            raise bad(f"{path}.{name} is missing", f"a part of type {self.type} has one", param=f"{path}.{name}")
        return value


class TextPart(Part):
    """In OpenAI's interfaces."""

    text: str | None = None
    refusal: str | None = None


def text_of(content: str | Sequence[TextPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text or part.refusal or "" for part in content)


def check_count(messages: Sequence[object], limits: Limits) -> None:
    if not messages:
        raise bad("messages is empty", "at least one is needed", param="messages")
    if len(messages) > limits.messages:
        raise bad(f"there are {len(messages):,} messages", f"at most {limits.messages:,}", param="messages")
