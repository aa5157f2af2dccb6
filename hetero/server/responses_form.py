"""The body of POST /v1/responses, OpenAI's newer interface, and of /v1/responses/input_tokens: nothing is stored."""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from hetero.sampler import Sampling
from hetero.server.ask import Ask, Effort, JsonFormat, Thinking
from hetero.server.fields import Form, Name, no_effect, refuse
from hetero.server.reasons import CACHED, HOSTED, KEPT, NO_VERBOSITY, ONE_TIER, ONE_USER, STORED, TEXT_ONLY
from hetero.server.refusal import bad
from hetero.server.responses_items import Item, template_messages
from hetero.server.responses_tools import Choice, Tool, shown, tools_of
from hetero.server.sampling_fields import (
    OpenTokens,
    SamplingFields,
    TopLogprobs,
    sampled,
)
from hetero.server.settings import Limits
from hetero.server.stream_fields import check_stream
from hetero.server.tool_fields import STRICT

LOGPROBS = "message.output_text.logprobs"


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


class PromptFields(Form):
    """What makes the prompt."""

    input: str | list[Item]
    model: Name | None = None
    instructions: str | None = None
    reasoning: ReasoningOption | None = None
    text: TextOption | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    conversation: Any = refuse(STORED)
    previous_response_id: Any = refuse(STORED)
    truncation: Any = refuse("nothing is left out of a conversation", "disabled")

    def unsampled(self, limits: Limits) -> Ask:
        """All but the sampling."""
        reasoning = self.reasoning.effort if self.reasoning else None
        effort = None if reasoning == "none" else reasoning
        return Ask(
            sampling=Sampling(),
            messages=self._messages(limits),
            source="input",
            thinking=Thinking(None if reasoning is None else reasoning != "none", effort=effort),
            tools=tools_of(self.tools or [], self.tool_choice, self.parallel_tool_calls is not False, limits),
            format=self._format(),
        )

    def _messages(self, limits: Limits) -> tuple[dict[str, Any], ...]:
        system = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        if not items:
            raise bad("input is empty", "at least one item is needed", param="input")
        if len(items) > limits.messages:
            raise bad(f"input has {len(items):,} items", f"at most {limits.messages:,}", param="input")
        return (*system, *template_messages(items))

    def _format(self) -> JsonFormat | None:
        found = self.text.format if self.text else None
        if found is None or found.type == "text":
            return None
        if found.type == "json_object":
            return JsonFormat()
        if found.schema_ is None:
            raise bad("text.format.schema is missing", "json_schema needs one", param="text.format.schema")
        return JsonFormat(found.schema_, bool(found.strict))


class InputTokensForm(PromptFields):
    personality: Any = refuse("the models have one style")


class ResponsesForm(PromptFields, SamplingFields):
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: OpenTokens | None = None
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = Field(default=None, description=f"{LOGPROBS}; reasoning.encrypted_content: no effect.")
    metadata: dict[str, str] | None = Field(default=None, description="Sent back.")
    prompt_cache_key: Any = no_effect(CACHED)
    prompt_cache_options: Any = no_effect(CACHED)
    prompt_cache_retention: Any = no_effect(KEPT)
    safety_identifier: Any = no_effect(ONE_USER)
    user: Any = no_effect(ONE_USER)
    client_metadata: Any = no_effect("nothing is stored")
    service_tier: Any = no_effect(ONE_TIER)
    access_programs: Any = refuse(HOSTED)
    background: Any = refuse(STORED, False)
    background_options: Any = refuse(STORED)
    context_management: Any = refuse("nothing is left out of a conversation", [])
    image: Any = refuse(TEXT_ONLY)
    max_tool_calls: Any = refuse("the server calls no tools itself")
    moderation: Any = refuse(HOSTED)
    prompt: Any = refuse(STORED)
    store: Any = refuse(STORED, False)

    def ask(self, defaults: Sampling, limits: Limits) -> Ask:
        check_stream(self.stream, self.stream_options)
        for name in self.include or []:
            if name not in (LOGPROBS, "reasoning.encrypted_content"):
                raise bad(f"include names {name[:50]!r}", f"{LOGPROBS} is implemented", "leave it out", param="include")
        sampling = sampled(self, defaults, self.max_output_tokens, limits)
        logprobs = (self.top_logprobs or 0) if self.top_logprobs or LOGPROBS in (self.include or []) else None
        return replace(self.unsampled(limits), sampling=sampling, logprobs=logprobs)


def echoed(form: ResponsesForm, sampling: Sampling) -> dict[str, Any]:
    """The settings that a response repeats: all that Open Responses requires (https://www.openresponses.org)."""
    choice = form.tool_choice.model_dump() if isinstance(form.tool_choice, Form) else form.tool_choice or "auto"
    layout = form.text.format if form.text else None
    text = layout.model_dump(by_alias=True, exclude_unset=True) if layout else {"type": "text"}
    return {
        "instructions": form.instructions,
        "max_output_tokens": None if form.max_output_tokens == -1 else form.max_output_tokens,
        "metadata": form.metadata or {},
        "parallel_tool_calls": form.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": form.reasoning.effort if form.reasoning else None, "summary": None},
        "store": False,
        "text": {"format": text},
        "tool_choice": choice,
        "tools": shown(form.tools or []),
        "top_logprobs": form.top_logprobs or 0,
        "truncation": "disabled",
        "background": False,
        "max_tool_calls": None,
        "service_tier": "default",
        "safety_identifier": form.safety_identifier if isinstance(form.safety_identifier, str) else None,
        "prompt_cache_key": form.prompt_cache_key if isinstance(form.prompt_cache_key, str) else None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
