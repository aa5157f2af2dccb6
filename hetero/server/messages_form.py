"""The body of POST /v1/messages, Anthropic's interface, and of /v1/messages/count_tokens."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from hetero.sampler import Sampling
from hetero.server.ask import Ask, Effort, JsonFormat, Thinking, Tools
from hetero.server.fields import Form, Name, no_effect, refuse
from hetero.server.message_parts import check_count
from hetero.server.messages_blocks import Block, Turn, plain, template_messages
from hetero.server.reasons import BY_THE_MODEL, CACHED, NO_TOOLS, ONE_TIER, ONE_USER, STORED
from hetero.server.refusal import bad
from hetero.server.sampling_fields import SamplingFields, Share, Temperature, Tokens, TopK, sampled, stops
from hetero.server.settings import Limits
from hetero.server.tool_fields import STRICT, OtherTool, offered

UNBILLED = "nobody is billed"


class Tool(Form):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_\-.]{1,128}$")]
    type: Literal["custom"] | None = None
    description: str | None = None
    input_schema: dict[str, Any]
    cache_control: Any = no_effect(CACHED)
    strict: bool | None = Field(default=None, description=STRICT)
    eager_input_streaming: Any = no_effect("arguments are always streamed as they are made")
    input_examples: Any = refuse("there is no place for them in the models' templates", [])
    allowed_callers: Any = refuse(BY_THE_MODEL, ["direct"])
    defer_loading: Any = no_effect("every tool is in the prompt")


def tool_kind(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "a function" if kind in (None, "custom") else "another"


AnyTool = Annotated[Annotated[Tool, Tag("a function")] | Annotated[OtherTool, Tag("another")], Discriminator(tool_kind)]


class ToolChoice(Form):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Form):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Tokens | None = None
    display: Literal["summarized", "omitted", "updates"] | None = Field(
        default=None, description="`omitted` does not show it; the others show it as it is."
    )
    block_binding: Any = no_effect("reasoning is not signed")


class OutputFormat(Form):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Form):
    effort: Effort | None = None
    format: OutputFormat | None = None
    task_budget: Any = no_effect("max_tokens and thinking's budget are the bounds", reported=True)


class CountForm(Form):
    """What makes the prompt."""

    messages: list[Turn]
    model: Name | None = None
    system: str | list[Block] | None = None
    thinking: ThinkingConfig | None = None
    tools: list[AnyTool] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(default=None, description="The older name of output_config.format.")
    context_management: Any = no_effect("nothing is left out of a conversation", reported=True)
    compaction: Any = refuse("conversations are not summarized")
    mcp_servers: Any = refuse(NO_TOOLS, [])
    betas: Any = no_effect("no field's meaning depends on them")
    billing_policy: Any = no_effect(UNBILLED)
    cache_control: Any = no_effect(CACHED)
    speed: Any = no_effect("there is one speed")
    user_profile_id: Any = no_effect(ONE_USER)
    workspace_id: Any = no_effect(ONE_USER)

    def unsampled(self, limits: Limits) -> Ask:
        """All but the sampling."""
        layout = (self.output_config and self.output_config.format) or self.output_format
        check_count(self.messages, limits)
        messages, begun = template_messages(self.messages), self.messages[-1].role == "assistant"
        if begun and messages[-1].get("tool_calls"):
            limit = "the results of its calls come next, in a user's message"
            raise bad("the last message holds a tool_use", limit, param=f"messages[{len(self.messages) - 1}].content")
        system = [] if self.system is None else [{"role": "system", "content": plain(self.system, "system")}]
        return Ask(
            sampling=Sampling(),
            messages=(*system, *messages),
            begun=begun,
            thinking=self._thinking(),
            tools=self._tools(limits),
            format=JsonFormat(layout.schema_) if layout else None,
        )

    def _thinking(self) -> Thinking:
        effort = self.output_config.effort if self.output_config else None
        if self.thinking is None or self.thinking.type == "adaptive":
            return Thinking(effort=effort)
        return Thinking(self.thinking.type == "enabled", self.thinking.budget_tokens, effort)

    def _tools(self, limits: Limits) -> Tools:
        choice = self.tool_choice or ToolChoice(type="auto")
        meant: dict[str, Any] = {"auto": "auto", "none": "none", "any": "required", "tool": (choice.name,)}
        tools = self.tools or []
        definitions = [definition(tool) for tool in tools if isinstance(tool, Tool)]
        return offered(tools, definitions, meant[choice.type], not choice.disable_parallel_tool_use, limits)


class MessagesForm(CountForm):
    max_tokens: Tokens = Field(description="More than the context has room for means: as many as it has.")
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = Field(default=None, description="0 and -1 keep all.")
    stop_sequences: list[str] | None = None
    return_progress: bool | None = Field(default=None, description="Extension: what was read, in `ping` events.")
    metadata: Any = no_effect(ONE_USER)
    service_tier: Any = no_effect(ONE_TIER)
    inference_geo: Any = no_effect("it is computed where the server is")
    fallbacks: Any = no_effect("there is one model")
    fallback_credit_token: Any = no_effect(UNBILLED)
    thread: Any = refuse(STORED)
    container: Any = refuse("there are no containers")
    diagnostics: Any = refuse("usage tells what was cached")

    def ask(self, defaults: Sampling, limits: Limits) -> Ask:
        if self.thinking and self.thinking.budget_tokens and self.thinking.budget_tokens >= self.max_tokens:
            found = f"thinking.budget_tokens is {self.thinking.budget_tokens:,}"
            raise bad(found, f"below max_tokens, {self.max_tokens:,}", param="thinking.budget_tokens")
        fields = SamplingFields(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)
        sampling = sampled(fields, defaults, self.max_tokens, limits)
        if self.stop_sequences:
            sampling = replace(sampling, stop=stops(self.stop_sequences, limits, "stop_sequences"))
        return replace(self.unsampled(limits), sampling=sampling, progress=bool(self.return_progress))


def definition(tool: Tool) -> dict[str, Any]:
    found: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        found["description"] = tool.description
    if tool.strict is not None:
        found["strict"] = tool.strict
    return found
