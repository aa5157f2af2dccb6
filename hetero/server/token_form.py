"""The bodies of POST /tokenize and POST /detokenize."""

from typing import Any

from pydantic import Field

from hetero.server.begun_fields import BegunFields
from hetero.server.chat_messages import ChatMessage
from hetero.server.completion_form import Ids
from hetero.server.fields import Form, Name


class TokenizeForm(BegunFields):
    """A text, or messages as the chat template would have them."""

    model: Name | None = None
    content: str | None = None
    messages: list[ChatMessage] | None = None
    add_special: bool | None = Field(default=None, description="Put begin-of-sequence first.")
    parse_special: bool | None = Field(default=None, description="The text of a control token becomes that token.")
    with_pieces: bool | None = Field(default=None, description="Each token's text, too.")
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeForm(Form):
    model: Name | None = None
    tokens: Ids
