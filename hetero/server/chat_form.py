"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from hetero.sampler import Sampling
from hetero.server.ask import Ask, Effort, JsonFormat, Thinking, ToolChoice, Tools
from hetero.server.chat_messages import THINKING, ChatMessage, template_variables, told
from hetero.server.fields import Form, Name, no_effect, refuse
from hetero.server.reasons import CACHED, HOSTED, KEPT, NO_VERBOSITY, ONE_TIER, ONE_USER, TEXT_ONLY
from hetero.server.refusal import bad
from hetero.server.sampling_fields import SamplingFields, Tokens, TopLogprobs, sampled
from hetero.server.settings import Limits
from hetero.server.stream_fields import StreamOptions, check_stream
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


Tool = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[OtherTool, Tag("other")], Discriminator(tool_kind)
]
Choice = Annotated[
    Annotated[Word, Tag("word")] | Annotated[NamedChoice, Tag("function")] | Annotated[OtherChoice, Tag("other")],
    Discriminator(choice_kind),
]


class JsonSchema(Form):
    name: Name
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = Field(default=None, description=STRICT)


class ResponseFormat(Form):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ThinkingOption(Form):
    type: Literal["enabled", "disabled", "auto"]
    budget_tokens: Annotated[int, Field(ge=0, le=1 << 31)] | None = None


class ChatForm(SamplingFields):
    messages: list[ChatMessage]
    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = Field(default=None, description="The older name of max_completion_tokens.")
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | Literal["none"] | None = None
    thinking: ThinkingOption | None = Field(default=None, description="Extension: reasoning on or off, and its budget.")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="Extension: for the chat template.")
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
        if self.top_logprobs is not None and not self.logprobs:
            raise bad("top_logprobs without logprobs", "logprobs must be true", param="top_logprobs")
        check_stream(self.stream, self.stream_options)
        copies = self.n or 1
        if copies > limits.choices:
            raise bad(f"n is {copies}", f"at most {limits.choices}", param="n")
        return Ask(
            sampling=sampled(self, defaults, self.max_completion_tokens or self.max_tokens, limits),
            messages=told(self.messages, limits),
            choices=copies,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            progress=bool(self.return_progress),
            thinking=thinking(self),
            tools=tools(self, limits),
            format=json_format(self.response_format),
            template=template_variables(self.chat_template_kwargs or {}),
        )


def thinking(form: ChatForm) -> Thinking:
    wanted: bool | None = None
    for name in THINKING:
        value = (form.chat_template_kwargs or {}).get(name)
        wanted = value if isinstance(value, bool) else wanted
    effort = form.reasoning_effort
    if effort is not None:
        wanted = effort != "none"
    budget = None
    if form.thinking is not None and form.thinking.type != "auto":
        wanted = form.thinking.type == "enabled"
    if form.thinking is not None:
        budget = form.thinking.budget_tokens
    return Thinking(wanted, budget, None if effort == "none" else effort)


def tools(form: ChatForm, limits: Limits) -> Tools:
    choice, sent = form.tool_choice or "auto", form.tools or []
    if isinstance(choice, OtherChoice):
        choice.refuse()
    named: ToolChoice = (choice.function.name,) if isinstance(choice, NamedChoice) else choice
    functions = [tool.function for tool in sent if isinstance(tool, FunctionTool)]
    definitions = [one.model_dump(include=DEFINITION, exclude_none=True) for one in functions]
    return offered(sent, definitions, named, form.parallel_tool_calls is not False, limits)


def json_format(form: ResponseFormat | None) -> JsonFormat | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return JsonFormat()
    if form.json_schema is None:
        raise bad("response_format.json_schema is missing", "json_schema needs one", param="response_format")
    schema = form.json_schema.schema_
    return JsonFormat({} if schema is None else schema, bool(form.json_schema.strict))
