"""The body of POST /v1/completions: text to go on with, without the chat template."""

from typing import Annotated, Any

from pydantic import Field

from hetero.sampler import Sampling
from hetero.server.ask import Ask
from hetero.server.fields import Name, no_effect, refuse
from hetero.server.format_fields import OtherForms
from hetero.server.reasons import ONE_USER
from hetero.server.refusal import bad
from hetero.server.sampling_fields import OpenTokens, SamplingFields, TopLogprobs, sampled
from hetero.server.settings import MOST_CHOICES, Limits
from hetero.server.stream_fields import StreamOptions, check_stream

Ids = list[Annotated[int, Field(ge=0, lt=1 << 31)]]
DEFAULT_TOKENS = 16  # OpenAI's, where max_tokens is left out
CHATS_ONLY = "a chat's answer has a form, a text's continuation has none"


class CompletionForm(SamplingFields, OtherForms):
    prompt: str | list[str] | Ids | list[Ids]
    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: OpenTokens | None = Field(default=None, description="16, where it is left out.")
    n_predict: OpenTokens | None = Field(default=None, description="Extension: the same.")
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    logprobs: TopLogprobs | None = Field(default=None, description="How many alternatives are shown for each token.")
    echo: bool | None = Field(default=None, description="Begin with the prompt; not together with logprobs.")
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = Field(default=None, description="Only as many as n.")
    return_progress: bool | None = Field(default=None, description="Extension: chunks while the prompt is read.")
    user: Any = no_effect(ONE_USER)
    guided_json: Any = refuse(CHATS_ONLY)
    json_schema: Any = refuse(CHATS_ONLY)
    response_format: Any = refuse(CHATS_ONLY, {"type": "text"})
    structured_outputs: Any = refuse(CHATS_ONLY)
    suffix: Any = refuse("the models do not fill in between", "")

    def ask(self, defaults: Sampling, limits: Limits) -> Ask:
        copies = self.n or 1
        if self.best_of is not None and self.best_of != copies:
            raise bad(f"best_of is {self.best_of}", f"n is {copies}, every choice is returned", param="best_of")
        if self.echo and self.logprobs is not None:
            raise bad("echo with logprobs", "there are no logprobs of the prompt", "leave one out", param="echo")
        check_stream(self.stream, self.stream_options)
        texts = self.texts()
        if not texts or len(texts) * copies > limits.choices:
            found = f"{len(texts)} prompts, each {copies} times"
            raise bad(found, f"1 to {limits.choices} answers to a request", param="prompt")
        return Ask(
            sampling=sampled(self, defaults, self.max_tokens or self.n_predict or DEFAULT_TOKENS, limits),
            texts=texts,
            source="prompt",
            choices=copies,
            logprobs=self.logprobs,
            progress=bool(self.return_progress),
        )

    def texts(self) -> tuple[str | tuple[int, ...], ...]:
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if self.prompt and isinstance(self.prompt[0], int):
            return (tuple(id for id in self.prompt if isinstance(id, int)),)
        return tuple(one if isinstance(one, str) else tuple(one) for one in self.prompt if not isinstance(one, int))
