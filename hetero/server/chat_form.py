"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from hetero.sampler import Sampling
from hetero.server.ask import Ask, ToolChoice, Tools
from hetero.server.begun_fields import BegunFields
from hetero.server.chat_messages import ChatMessage, template_messages, template_variables
from hetero.server.fields import Form, Name, no_effect, refuse
from hetero.server.format_fields import FormatFields
from hetero.server.reasons import CACHED, HOSTED, KEPT, NO_VERBOSITY, ONE_TIER, ONE_USER, TEXT_ONLY
from hetero.server.refusal import bad
from hetero.server.sampling_fields import OpenTokens, SamplingFields, TopLogprobs, sampled
from hetero.server.settings import MOST_CHOICES, Limits
from hetero.server.stream_fields import StreamOptions, check_stream
from hetero.server.thinking_fields import ThinkingFields
from hetero.server.tool_fields import (
    DEFINITION,
    STRICT,
    FunctionName,
    OtherChoice,
    OtherTool,
    Word,
    choice_kind,
    offered,
    tool_kind,
)


class FunctionDefinition(Form):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema; none: no arguments.")
    strict: bool | None = Field(default=None, description=STRICT)


class FunctionTool(Form):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Form):
    name: Name


class NamedChoice(Form):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Form):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1)]


class AllowedChoice(Form):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


Tool = Annotated[
    Annotated[FunctionTool, Tag("a function")] | Annotated[OtherTool, Tag("another")], Discriminator(tool_kind)
]
Choice = Annotated[
    Annotated[Word, Tag("a word")]
    | Annotated[NamedChoice, Tag("a function")]
    | Annotated[AllowedChoice, Tag("some functions")]
    | Annotated[OtherChoice, Tag("another")],
    Discriminator(choice_kind),
]


class ChatForm(SamplingFields, FormatFields, ThinkingFields, BegunFields):
    messages: list[ChatMessage]
    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: OpenTokens | None = None
    max_tokens: OpenTokens | None = Field(default=None, description="The older name of max_completion_tokens.")
    n_predict: OpenTokens | None = Field(default=None, description="Extension: the same.")
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    return_progress: bool | None = Field(default=None, description="Extension: chunks while the prompt is read.")
    metadata: Any = no_effect("nothing is stored")
    prompt_cache_key: Any = no_effect(CACHED)
    prompt_cache_options: Any = no_effect(CACHED)
    prompt_cache_retention: Any = no_effect(KEPT)
    safety_identifier: Any = no_effect(ONE_USER)
    user: Any = no_effect(ONE_USER)
    service_tier: Any = no_effect(ONE_TIER)
    store: Any = refuse("nothing is stored", False)
    audio: Any = refuse(TEXT_ONLY)
    modalities: Any = refuse(TEXT_ONLY, ["text"])
    prediction: Any = refuse("answers are not predicted")
    verbosity: Any = refuse(NO_VERBOSITY, "medium")
    web_search_options: Any = refuse("the server reaches no network")
    moderation: Any = refuse(HOSTED)
    function_call: Any = refuse("the older form of tool_choice", "none")
    functions: Any = refuse("the older form of tools", [])

    def ask(self, defaults: Sampling, limits: Limits) -> Ask:
        """Refusal, or RequestError, where fields contradict each other or exceed a limit."""
        if self.top_logprobs and not self.logprobs:
            raise bad("top_logprobs without logprobs", "logprobs must be true", param="top_logprobs")
        check_stream(self.stream, self.stream_options)
        most = self.max_completion_tokens or self.max_tokens or self.n_predict
        copies = self.n or 1
        if copies > limits.choices:
            raise bad(f"n is {copies}", f"at most {limits.choices}", param="n")
        return Ask(
            sampling=sampled(self, defaults, most, limits),
            messages=template_messages(self.messages, limits),
            begun=self.begun(self.messages),
            choices=copies,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            progress=bool(self.return_progress),
            thinking=self.wish(),
            tools=tools(self, limits),
            format=self.layout(),
            template=template_variables(self.chat_template_kwargs or {}),
        )


def tools(form: ChatForm, limits: Limits) -> Tools:
    choice, sent, allowed = form.tool_choice or "auto", form.tools or [], None
    if isinstance(choice, OtherChoice):
        choice.refuse()
    if isinstance(choice, AllowedChoice):
        allowed, choice = tuple(one.function.name for one in choice.allowed_tools.tools), choice.allowed_tools.mode
    named: ToolChoice = (choice.function.name,) if isinstance(choice, NamedChoice) else choice
    functions = [tool.function for tool in sent if isinstance(tool, FunctionTool)]
    definitions = [one.model_dump(include=DEFINITION, exclude_none=True) for one in functions]
    return offered(sent, definitions, named, form.parallel_tool_calls is not False, limits, allowed)
