"""The body of POST /v1/chat/completions."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from hetero.sampler import Sampling
from hetero.server.ask import Ask, Effort, JsonFormat, Thinking, ToolChoice, Tools
from hetero.server.fields import Form, Name, no_effect, refuse
from hetero.server.refusal import bad
from hetero.server.settings import Limits
from hetero.server.shared_fields import SamplingFields, Tokens, TopLogprobs, sampled
from hetero.server.tool_fields import DEFINITION, STRICT, FunctionName, offered

THINKING = ("thinking", "enable_thinking")  # as other servers' clients say it
RESERVED = frozenset(
    ("self", "template", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "pad_token")
)
HOSTED = "it belongs to OpenAI's own service"


class TextPart(Form):
    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    prompt_cache_breakpoint: Any = no_effect("every prefix is cached")


class CalledFunction(Form):
    name: Name
    arguments: str = Field(description="JSON, as the model wrote it.")


class ToolCall(Form):
    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Any = no_effect("the order of the list counts")


class ChatMessage(Form):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Name | None = None
    reasoning_content: str | None = Field(default=None, description="Extension: an earlier answer's reasoning.")
    name: Any = no_effect("the models' templates have no place for a name")
    refusal: Any = no_effect("a refusal is text")
    annotations: Any = no_effect("they are not part of the text")
    audio: Any = refuse("text only")
    function_call: Any = refuse("the older form of tool_calls")


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


class JsonSchema(Form):
    name: Name
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = Field(default=None, description=STRICT)


class ResponseFormat(Form):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Form):
    include_usage: bool | None = None
    include_obfuscation: Any = no_effect("chunks are not padded")


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
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | Literal["none"] | None = None
    thinking: ThinkingOption | None = Field(default=None, description="Extension: reasoning on or off, and its budget.")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="Extension: for the chat template.")
    return_progress: bool | None = Field(default=None, description="Extension: chunks while the prompt is read.")
    metadata: Any = no_effect("nothing is stored")
    prompt_cache_key: Any = no_effect("every prefix is cached")
    prompt_cache_options: Any = no_effect("every prefix is cached")
    prompt_cache_retention: Any = no_effect("prefixes stay as long as there is room")
    safety_identifier: Any = no_effect("requests are not told apart by user")
    user: Any = no_effect("requests are not told apart by user")
    service_tier: Any = no_effect("there is one tier")
    store: Any = refuse("nothing is stored", False)
    audio: Any = refuse("text only")
    modalities: Any = refuse("text only", ["text"])
    prediction: Any = refuse("answers are not predicted")
    verbosity: Any = refuse("the models know no verbosity", "medium")
    web_search_options: Any = refuse("the server reaches no network")
    moderation: Any = refuse(HOSTED)
    function_call: Any = refuse("the older form of tool_choice", "none")
    functions: Any = refuse("the older form of tools", [])

    def ask(self, defaults: Sampling, limits: Limits) -> Ask:
        """Refusal, or RequestError, where fields contradict each other or exceed a limit."""
        if self.top_logprobs is not None and not self.logprobs:
            raise bad("top_logprobs without logprobs", "logprobs must be true", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise bad("stream_options without stream", "stream must be true", param="stream_options")
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


def told(messages: list[ChatMessage], limits: Limits) -> tuple[dict[str, Any], ...]:
    """As chat templates take them."""
    if not messages:
        raise bad("messages is empty", "at least one is needed", param="messages")
    if len(messages) > limits.messages:
        raise bad(f"there are {len(messages):,} messages", f"at most {limits.messages:,}", param="messages")
    return tuple(plain(message, f"messages[{at}]") for at, message in enumerate(messages))


def plain(message: ChatMessage, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    if message.content is None and not message.tool_calls:
        raise bad(f"{path}.content is missing", "only a message with tool_calls may go without", param=path)
    found["content"] = text_of(message.content)
    if message.role == "tool":
        if message.tool_call_id is None:
            raise bad(f"{path}.tool_call_id is missing", "a tool's answer names its call", param=path)
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        if message.role != "assistant":
            raise bad(f"{path} is a {message.role}'s and has tool_calls", "an assistant's may", param=path)
        calls = [(call.id, call.function) for call in message.tool_calls]
        found["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
            for id, one in calls
        ]
    if message.reasoning_content is not None:
        found["reasoning_content"] = message.reasoning_content
    return found


def text_of(content: str | list[TextPart] | None) -> str:
    if isinstance(content, list):
        return "".join(part.text or part.refusal or "" for part in content)
    return content or ""


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


def template_variables(given: dict[str, Any]) -> dict[str, Any]:
    """For the chat template; what the server itself tells it is not among them."""
    for name in given:
        if name in RESERVED or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            limit = "it is no name of a variable, or one that the server sets"
            raise bad(f"chat_template_kwargs has {name[:64]!r}", limit, "leave it out", param="chat_template_kwargs")
    return {name: value for name, value in given.items() if name not in THINKING}


def tools(form: ChatForm, limits: Limits) -> Tools:
    choice = form.tool_choice or "auto"
    named: ToolChoice = (choice.function.name,) if isinstance(choice, NamedChoice) else choice
    definitions = [tool.function.model_dump(include=DEFINITION, exclude_none=True) for tool in form.tools or []]
    return offered(definitions, named, form.parallel_tool_calls is not False, limits)


def json_format(form: ResponseFormat | None) -> JsonFormat | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return JsonFormat()
    if form.json_schema is None:
        raise bad("response_format.json_schema is missing", "json_schema needs one", param="response_format")
    schema = form.json_schema.schema_
    return JsonFormat({} if schema is None else schema, bool(form.json_schema.strict))
