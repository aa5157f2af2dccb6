"""A model that answers, and what belongs to it."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hetero.errors import UnsupportedError
from hetero.server.constraints import Vocabulary

if TYPE_CHECKING:
    from hetero.planning import Planned
    from hetero.scheduler import Scheduler
    from hetero.template import ChatTemplate
    from hetero.tokenizer import Tokenizer


@dataclass(frozen=True)
class Loaded:
    scheduler: "Scheduler"
    tokenizer: "Tokenizer"
    template: "ChatTemplate"
    context: int
    sequences: int
    title: str  # as its file says
    planned: "Planned | None" = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """For grammars. UnsupportedError: this model's answers cannot be held to one."""
        return Vocabulary(self.tokenizer)

    def make_vocabulary(self) -> None:
        """Now, and not in the first request that needs it, nor in two at once."""
        with suppress(UnsupportedError):
            assert self.vocabulary is not None, "it is made by being asked for"
