"""Answers of a model that is loaded here, for hetero.chat."""

from typing import TYPE_CHECKING

from hetero.generate import Answer, chat_prompt, check_room
from hetero.reasoning_budget import as_wanted
from hetero.sampler import Sampling

if TYPE_CHECKING:
    from hetero.conversation import Message
    from hetero.engine import Engine
    from hetero.template import ChatTemplate
    from hetero.tokenizer import Tokenizer


class LocalAnswers:
    """`thinking` None: as the template does by itself; False: none, whatever it does."""

    def __init__(
        self,
        engine: "Engine",
        tokenizer: "Tokenizer",
        template: "ChatTemplate",
        sampling: Sampling,
        thinking: bool | None = None,
    ):
        self.engine, self.tokenizer, self.template = engine, tokenizer, template
        self.thinking, self.max_tokens = thinking, sampling.max_tokens
        self.context: int | None = engine.context
        self.more_context = "start with a larger --context"
        self.name = engine.config.name
        self._sampling = sampling

    def answer(self, messages: list["Message"]) -> Answer:
        asked = chat_prompt(self.template, messages, self.thinking)
        prompt, constraint = as_wanted(self.tokenizer, asked, self.thinking)
        check_room(prompt, self.engine.context, "/clear forgets the conversation, a larger --context holds more")
        return Answer(self.engine, self.tokenizer, prompt, self._sampling, constraint)

    @property
    def speeds(self) -> str:
        return str(self.engine.telemetry) if self.engine.telemetry.prompt_tokens else ""

    @property
    def context_used(self) -> int:
        return self.engine.tokens_cached

    def close(self) -> None:
        self.engine.close()
