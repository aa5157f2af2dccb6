"""The body of POST /v1/responses: OpenAI's newer interface, without anything stored between requests."""

from typing import Any, Literal

from pydantic import Field

from hetero.sampler import Sampling
from hetero.server.ask import Ask, Effort, JsonFormat, Thinking, ToolChoice, Tools
from hetero.server.fields import Form, Name, no_effect, refuse
from hetero.server.message_parts import Part, TextPart, text_of
from hetero.server.reasons import BY_THE_MODEL, CACHED, HOSTED, KEPT, NO_VERBOSITY, ONE_TIER, ONE_USER, TEXT_ONLY
from hetero.server.refusal import bad
from hetero.server.sampling_fields import (
    SamplingFields,
    Share,
    Temperature,
    Tokens,
    TopLogprobs,
    sampled,
)
from hetero.server.settings import Limits
from hetero.server.stream_fields import check_stream
from hetero.server.tool_fields import DEFINITION, STRICT, FunctionName, offered

STORED = "nothing is stored between requests"
LOGPROBS = "message.output_text.logprobs"


class ItemPart(TextPart):
    type: Literal["input_text", "output_text", "reasoning_text", "summary_text", "refusal", "text"]
    annotations: Any = no_effect("they are not part of the text")
    logprobs: Any = no_effect("they are not part of the text")
    prompt_cache_breakpoint: Any = no_effect(CACHED)


class Item(Part):
    """A part of the conversation."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ItemPart] | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: str | None = None
    output: str | list[ItemPart] | None = None
    id: Any = no_effect(STORED)
    status: Any = no_effect("every item is taken as it is")
    phase: Any = no_effect("an answer has one phase")
    summary: Any = no_effect("reasoning comes whole, in content")
    encrypted_content: Any = no_effect("reasoning comes in plain text")
    caller: Any = no_effect("every tool is called by the model itself")
    namespace: Any = refuse("tools have no namespaces")


class FunctionTool(Form):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description=STRICT)
    output_schema: Any = no_effect("what a tool gives is text for the model")
    allowed_callers: Any = refuse(BY_THE_MODEL, ["direct"])
    defer_loading: Any = refuse("every tool is in the prompt", False)


class NamedChoice(Form):
    type: Literal["function"]
    name: Name


class ReasoningOption(Form):
    effort: Effort | Literal["none"] | None = None
    summary: Any = no_effect("reasoning is shown whole")
    generate_summary: Any = no_effect("reasoning is shown whole")
    context: Any = refuse("which reasoning a prompt holds is the chat template's affair", "auto")
    mode: Any = refuse("there is one mode", "standard")


class TextFormat(Form):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = Field(default=None, description=STRICT)


class TextOption(Form):
    format: TextFormat | None = None
    verbosity: Any = refuse(NO_VERBOSITY, "medium")


class StreamOptions(Form):
    include_obfuscation: Any = no_effect("events are not padded")


class ResponsesForm(Form):
    input: str | list[Item]
    model: Name | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = Field(default=None, description=f"{LOGPROBS}; reasoning.encrypted_content: no effect.")
    reasoning: ReasoningOption | None = None
    text: TextOption | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = Field(default=None, description="Sent back.")
    prompt_cache_key: Any = no_effect(CACHED)
    prompt_cache_options: Any = no_effect(CACHED)
    prompt_cache_retention: Any = no_effect(KEPT)
    safety_identifier: Any = no_effect(ONE_USER)
    user: Any = no_effect(ONE_USER)
    service_tier: Any = no_effect(ONE_TIER)
    access_programs: Any = refuse(HOSTED)
    background: Any = refuse(STORED, False)
    background_options: Any = refuse(STORED)
    context_management: Any = refuse("nothing is left out of a conversation", [])
    conversation: Any = refuse(STORED)
    image: Any = refuse(TEXT_ONLY)
    max_tool_calls: Any = refuse("the server calls no tools itself")
    moderation: Any = refuse(HOSTED)
    previous_response_id: Any = refuse(STORED)
    prompt: Any = refuse(STORED)
    store: Any = refuse(STORED, False)
    truncation: Any = refuse("nothing is left out of a conversation", "disabled")

    def ask(self, defaults: Sampling, limits: Limits) -> Ask:
        check_stream(self.stream, self.stream_options)
        for name in self.include or []:
            if name not in (LOGPROBS, "reasoning.encrypted_content"):
                raise bad(f"include names {name[:50]!r}", f"{LOGPROBS} is implemented", "leave it out", param="include")
        fields = SamplingFields(temperature=self.temperature, top_p=self.top_p)
        reasoning = self.reasoning.effort if self.reasoning else None
        effort = None if reasoning == "none" else reasoning
        return Ask(
            sampling=sampled(fields, defaults, self.max_output_tokens, limits),
            messages=self._messages(limits),
            logprobs=(self.top_logprobs or 0) if self.top_logprobs or LOGPROBS in (self.include or []) else None,
            thinking=Thinking(None if reasoning is None else reasoning != "none", effort=effort),
            tools=self._tools(limits),
            format=self._format(),
        )

    def _messages(self, limits: Limits) -> tuple[dict[str, Any], ...]:
        told: list[dict[str, Any]] = []
        if self.instructions is not None:
            told.append({"role": "system", "content": self.instructions})
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        if not items:
            raise bad("input is empty", "at least one item is needed", param="input")
        if len(items) > limits.messages:
            raise bad(f"input has {len(items):,} items", f"at most {limits.messages:,}", param="input")
        for at, item in enumerate(items):
            tell(item, f"input[{at}]", told)
        return tuple(message for message in told if message["role"] != "assistant" or len(message) > 1)

    def _tools(self, limits: Limits) -> Tools:
        choice = self.tool_choice or "auto"
        named: ToolChoice = (choice.name,) if isinstance(choice, NamedChoice) else choice
        definitions = [tool.model_dump(include=DEFINITION, exclude_none=True) for tool in self.tools or []]
        return offered(definitions, named, self.parallel_tool_calls is not False, limits)

    def _format(self) -> JsonFormat | None:
        found = self.text.format if self.text else None
        if found is None or found.type == "text":
            return None
        if found.type == "json_object":
            return JsonFormat()
        if found.schema_ is None:
            raise bad("text.format.schema is missing", "json_schema needs one", param="text.format.schema")
        return JsonFormat(found.schema_, bool(found.strict))


def tell(item: Item, path: str, told: list[dict[str, Any]]) -> None:
    """Adds an item; what the assistant thought, said and called in a row is one message of a chat template."""
    if item.type == "message":
        role = "system" if item.role == "developer" else item.needed("role", path)
        content = text_of(item.needed("content", path))
        if role != "assistant":
            told.append({"role": role, "content": content})
        else:
            message = assistants(told)
            message["content"] = message.get("content", "") + content
    elif item.type == "reasoning":
        if thought := text_of(item.content):
            message = assistants(told)
            message["reasoning_content"] = message.get("reasoning_content", "") + thought
    elif item.type == "function_call":
        called = {"name": item.needed("name", path), "arguments": item.needed("arguments", path)}
        call = {"id": item.needed("call_id", path), "type": "function", "function": called}
        message = assistants(told)
        message.setdefault("content", "")
        message.setdefault("tool_calls", []).append(call)
    else:
        content = text_of(item.needed("output", path))
        told.append({"role": "tool", "tool_call_id": item.needed("call_id", path), "content": content})


def assistants(told: list[dict[str, Any]]) -> dict[str, Any]:
    if not told or told[-1]["role"] != "assistant":
        told.append({"role": "assistant"})
    return told[-1]


def echoed(form: ResponsesForm, sampling: Sampling) -> dict[str, Any]:
    """The settings that a response repeats."""
    tools = [tool.model_dump(exclude_unset=True, exclude_none=True) for tool in form.tools or []]
    choice = form.tool_choice.model_dump() if isinstance(form.tool_choice, NamedChoice) else form.tool_choice or "auto"
    layout = form.text.format if form.text else None
    text = layout.model_dump(by_alias=True, exclude_unset=True) if layout else {"type": "text"}
    return {
        "instructions": form.instructions,
        "max_output_tokens": form.max_output_tokens,
        "metadata": form.metadata or {},
        "parallel_tool_calls": form.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": form.reasoning.effort if form.reasoning else None, "summary": None},
        "store": False,
        "text": {"format": text},
        "tool_choice": choice,
        "tools": [{"strict": True, "parameters": None} | tool for tool in tools],
        "top_logprobs": form.top_logprobs or 0,
        "truncation": "disabled",
        "background": False,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
