"""Fields that say whether a chat's answer goes on with the last message, as vLLM's and DeepSeek's clients say it."""

from collections.abc import Sequence

from pydantic import Field

from hetero.server.chat_messages import ChatMessage
from hetero.server.fields import Form
from hetero.server.refusal import bad

ASSISTANTS = "an answer goes on with the last message, which is the assistant's"


class BegunFields(Form):
    continue_final_message: bool | None = Field(
        default=None, description="Extension: the answer goes on with the last message, the assistant's."
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="Extension: false beside continue_final_message or a message's prefix."
    )

    def begun(self, messages: Sequence[ChatMessage]) -> bool:
        """There is one. Refusal where they say so of one that cannot be gone on with."""
        *before, last = messages
        for at, message in enumerate(messages):
            if message.prefix and (at < len(before) or last.role != "assistant"):
                param = f"messages[{at}].prefix"
                raise bad(f"{param} is true of a message of the {message.role}'s", ASSISTANTS, param=param)
        if not (self.continue_final_message or last.prefix):
            if self.add_generation_prompt is False:
                found, limit = "add_generation_prompt is false", "only where the answer goes on with the last message"
                remedy = "leave it out, or say continue_final_message"
                raise bad(found, limit, remedy, param="add_generation_prompt", code="unsupported_field")
            return False
        if last.role != "assistant":
            param = "continue_final_message"
            raise bad(f"{param} is true, and the last message is the {last.role}'s", ASSISTANTS, param=param)
        if last.tool_calls:
            param = f"messages[{len(before)}].tool_calls"
            raise bad(f"the last message has {param}", "its calls are answered next, in messages of tools", param=param)
        if self.add_generation_prompt:
            found, remedy = "add_generation_prompt is true", "say false, or leave it out"
            raise bad(found, "an answer that was begun needs no beginning", remedy, param="add_generation_prompt")
        return True
