"""Fields that say whether a chat's answer begins with reasoning, and how long it may be."""

from typing import Annotated, Any, Literal

from pydantic import Field

from hetero.server.ask import Effort, Thinking
from hetero.server.chat_messages import THINKING
from hetero.server.fields import Form, refuse

Budget = Annotated[int, Field(ge=0, le=1 << 31)]


class ThinkingOption(Form):
    type: Literal["enabled", "disabled", "auto"]
    budget_tokens: Budget | None = None


class ReasoningOption(Form):
    """As OpenRouter's clients say it."""

    effort: Effort | Literal["none"] | None = None
    max_tokens: Budget | None = None
    enabled: bool | None = None
    exclude: Any = refuse("reasoning is shown", False)


class ThinkingFields(Form):
    reasoning_effort: Effort | Literal["none"] | None = None
    thinking: ThinkingOption | None = Field(default=None, description="Extension: reasoning on or off, and its budget.")
    reasoning: ReasoningOption | None = Field(default=None, description="Extension: `effort`, `max_tokens`, `enabled`.")
    enable_thinking: bool | None = Field(default=None, description="Extension: reasoning on or off.")
    include_reasoning: Any = refuse("reasoning is shown", True)
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="Extension: for the chat template.")

    def wish(self) -> Thinking:
        """What is said more exactly counts more."""
        variables = self.chat_template_kwargs or {}
        said = [*(variables.get(name) for name in THINKING), self.enable_thinking]
        effort, budget = self.reasoning_effort, None
        if self.reasoning is not None:
            effort = effort or self.reasoning.effort
            budget = self.reasoning.max_tokens
            said += [True if budget else None, self.reasoning.enabled]
        if effort is not None:
            said.append(effort != "none")
        if self.thinking is not None:
            budget = budget if self.thinking.budget_tokens is None else self.thinking.budget_tokens
            said.append(None if self.thinking.type == "auto" else self.thinking.type == "enabled")
        wanted = [one for one in said if isinstance(one, bool)]
        return Thinking(wanted[-1] if wanted else None, budget, None if effort == "none" else effort)
