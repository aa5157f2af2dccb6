"""How OpenAI's clients say that an answer is to be streamed."""

from typing import Any

from hetero.server.fields import Form, no_effect
from hetero.server.refusal import bad


class StreamOptions(Form):
    include_usage: bool | None = None
    include_obfuscation: Any = no_effect("chunks are not padded")


def check_stream(stream: bool | None, options: Form | None) -> None:
    """Refusal of options of a stream where there is none."""
    if options is not None and not stream:
        raise bad("stream_options without stream", "stream must be true", param="stream_options")
