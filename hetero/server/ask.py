"""What a request wants of the model, whatever interface it came by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hetero.sampler import Sampling

Effort = Literal["minimal", "low", "medium", "high", "xhigh", "max"]
ToolChoice = Literal["auto", "required", "none"] | tuple[str]


@dataclass(frozen=True)
class Thinking:
    """`wanted` None: as the model's template does by itself. At most `budget` tokens, or as many as `effort` means."""

    wanted: bool | None = None
    budget: int | None = None
    effort: Effort | None = None


@dataclass(frozen=True)
class Tools:
    """Functions in OpenAI's form, {"type": "function", "function": {...}}.

    `choice`: the model decides, must call one, must not, or must call the one of this name. `allowed`: the names of
    those that may be called, of all that the prompt tells of; None: any.
    """

    functions: tuple[dict[str, Any], ...] = ()
    choice: ToolChoice = "auto"
    parallel: bool = True
    allowed: tuple[str, ...] | None = None

    @property
    def offered(self) -> bool:
        return bool(self.functions) and self.choice != "none"

    @property
    def required(self) -> bool:
        """The answer is a call."""
        return self.offered and self.choice != "auto"


@dataclass(frozen=True)
class JsonFormat:
    """The answer is a JSON object; or a document of this schema, where there is one."""

    schema: dict[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True)
class Ask:
    """Messages for the chat template, or texts (or token ids) to go on with.

    `sampling.max_tokens`: as the client said; None, and more than there is room for: to the end of the context.
    `begun`: the answer goes on with the last message, which is the assistant's and has no calls.
    `logprobs`: how many alternatives are shown for each token. `source`: the field that the prompt is made of.
    """

    sampling: Sampling
    messages: tuple[dict[str, Any], ...] | None = None
    begun: bool = False
    texts: tuple[str | tuple[int, ...], ...] = ()
    source: str = "messages"
    choices: int = 1
    logprobs: int | None = None
    progress: bool = False
    thinking: Thinking = field(default_factory=Thinking)
    tools: Tools = field(default_factory=Tools)
    format: JsonFormat | None = None
    template: Mapping[str, Any] = field(default_factory=dict)  # further variables of the chat template
