"""A bound on how long a model thinks before it answers."""

import codecs
from typing import Literal

import numpy as np

from hetero.continuation import Constraint
from hetero.generate import Prompt
from hetero.server.ask import Effort, Thinking
from hetero.server.constraints import Vocabulary, one_token, thinking_ids
from hetero.thinking import CLOSE
from hetero.tokenizer import Tokenizer

# Tokens that an effort stands for; None: no bound. R1 takes about 800 for a riddle and 8,000 to 20,000 for a problem of
# a mathematics olympiad; what is not there in time, the model answers with what it has.
EFFORTS: dict[Effort, int | None] = {
    "minimal": 256,
    "low": 1_024,
    "medium": 4_096,
    "high": 16_384,
    "xhigh": None,
    "max": None,
}
ENDING = f"\n{CLOSE}\n\n"  # as R1 ends its thoughts
NOTHING = f"\n\n{CLOSE}\n\n"  # as it thinks nothing, behind `<think>`
HALF_CHARACTER = 3  # tokens that a character which the bound cut in two may still take
State = Literal["start", "thinking", "cut off", "answer"]


class ReasoningBudget:
    """A Constraint: after `budget` tokens of thinking, ENDING is forced, token by token. Around it `inner`, if any.

    What was cut off is answered: the first token behind ENDING does not end the text, and none ends the thinking again,
    as a model does that goes on with its thought. `tokens`: those of the thinking
    so far, without the marks and what was forced. Only for models with `</think>`.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Prompt, budget: int, inner: Constraint | None = None):
        self._vocabulary, self._budget, self._inner = vocabulary, budget, inner
        self._opening, self._closing = thinking_ids(vocabulary.tokenizer, prompt)
        self._state: State = "start" if self._opening is not None else "thinking"
        self._forced = vocabulary.tokenizer.encode(ENDING, special=True)
        self._cut: list[np.ndarray] = []  # once it was cut off: masks without `</think>`, first without an end as well
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.tokens = 0

    def mask(self) -> np.ndarray | None:
        if self._state == "thinking" and self._spent:
            return self._vocabulary.bits([self._forced[0]], others=False)
        mask = self._inner.mask() if self._inner is not None else None
        return narrowed(mask, self._cut[self._state == "answer"]) if self._cut else mask

    def accept(self, id: int) -> None:
        if self._inner is not None:
            self._inner.accept(id)
        if self._state == "start":
            self._state = "thinking" if id == self._opening else "answer"
        elif self._state == "thinking":
            self._think(id)
        else:
            self._state = "answer"

    @property
    def ended(self) -> bool:
        return self._inner is not None and self._inner.ended

    @property
    def _spent(self) -> bool:
        over = self.tokens - self._budget
        return over >= HALF_CHARACTER or (over >= 0 and not self._characters.getstate()[0])

    def _think(self, id: int) -> None:
        if self._spent:
            self._forced = self._forced[1:]
            if not self._forced:
                self._state = "cut off"
                closing, stops = frozenset({self._closing or 0}), self._vocabulary.tokenizer.stop_ids
                self._cut = [self._vocabulary.bits(ids, others=True) for ids in (closing | stops, closing)]
        elif id == self._closing:
            self._state = "answer"
        else:
            self.tokens += 1
            self._characters.decode(self._vocabulary.tokenizer.token_bytes(id))


def narrowed(mask: np.ndarray | None, others: np.ndarray) -> np.ndarray:
    """What both allow; as `mask` says where that is nothing."""
    both = others if mask is None else others & mask
    return both if mask is None or both.any() else mask


def budget_of(thinking: Thinking) -> int | None:
    """What was asked for in tokens, else what the effort stands for; None: no bound.

    None at all where it is not wanted, in case that the model begins with it by itself.
    """
    if thinking.wanted is False:
        return 0
    if thinking.budget is not None:
        return thinking.budget
    return EFFORTS[thinking.effort] if thinking.effort is not None else None


def closed(tokenizer: Tokenizer, prompt: Prompt) -> Prompt:
    """Where a template opens `<think>` unasked, the prompt that goes on to its end: no token of the answer is spent."""
    if not prompt.opens_thinking or one_token(tokenizer, CLOSE) is None:
        return prompt
    ids = [*prompt.ids]
    while tokenizer.decode(ids[-1:]) == "\n":
        ids.pop()
    return Prompt([*ids, *tokenizer.encode(NOTHING, special=True)], opens_thinking=False)


def bounded(
    vocabulary: Vocabulary, prompt: Prompt, budget: int | None, inner: Constraint | None = None
) -> Constraint | None:
    """`inner` within this budget; as it is where there is no bound, or no reasoning in this prompt."""
    if budget is None or thinking_ids(vocabulary.tokenizer, prompt)[1] is None:
        return inner
    return ReasoningBudget(vocabulary, prompt, budget, inner)
