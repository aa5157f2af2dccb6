"""Reasoning that is not wanted, or only so much of it: a bound on how long a model thinks before it answers."""

import codecs
from typing import TYPE_CHECKING, Literal

import numpy as np

from hetero.continuation import Constraint, bits
from hetero.generate import Prompt
from hetero.thinking import CLOSE, OPEN

if TYPE_CHECKING:
    from hetero.tokenizer import Tokenizer

ENDING = f"\n{CLOSE}\n\n"  # as R1 ends its thoughts
NOTHING = f"\n\n{CLOSE}\n\n"  # as it thinks nothing, behind `<think>`
HALF_CHARACTER = 3  # tokens that a character which the bound cut in two may still take
State = Literal["start", "thinking", "cut off", "answer"]


class ReasoningBudget:
    """A Constraint: after `budget` tokens of thinking, ENDING is forced, token by token. Around it `inner`, if any.

    What was cut off is answered: the first token behind ENDING neither ends the text nor begins to think again, and
    none ends the thinking again, as a model does that goes on with its thought. `tokens`: those of the thinking so far,
    without the marks and what was forced. Only for models with `</think>`.
    """

    def __init__(self, tokenizer: "Tokenizer", prompt: Prompt, budget: int, inner: Constraint | None = None):
        self._tokenizer, self._budget, self._inner = tokenizer, budget, inner
        self._opening, self._closing = thinking_ids(tokenizer, prompt)
        self._state: State = "start" if self._opening is not None else "thinking"
        self._forced = tokenizer.encode(ENDING, special=True)
        self._cut: list[np.ndarray] = []  # once it was cut off: masks of the first token and of those behind it
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.tokens = 0

    def mask(self) -> np.ndarray | None:
        if self._state == "thinking" and self._spent:
            return bits(self._forced[:1], self._tokenizer.vocab_size)
        mask = self._inner.mask() if self._inner is not None else None
        return narrowed(mask, self._cut[self._state == "answer"]) if self._cut else mask

    def accept(self, id: int) -> None:
        if self._inner is not None:
            self._inner.accept(id)
        if self._state == "start":
            if id == self._opening:
                self._state = "thinking"
            elif not self._tokenizer.token_bytes(id).isspace():
                self._state = "answer"
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
                self._cut = [bits(ids, self._tokenizer.vocab_size, others=True) for ids in self._forbidden()]
        elif id == self._closing:
            self._state = "answer"
        else:
            self.tokens += 1
            self._characters.decode(self._tokenizer.token_bytes(id))

    def _forbidden(self) -> tuple[set[int], set[int]]:
        """Behind what was forced: for the first token, for others."""
        marks = {id for id in (one_token(self._tokenizer, OPEN), self._closing) if id is not None}
        return marks | self._tokenizer.stop_ids, marks & {self._closing}


class StaysClosed:
    """A Constraint for a prompt in which the reasoning has ended: the answer does not begin with `<think>` once more,
    also not behind white space. Around it `inner`, if any."""

    def __init__(self, tokenizer: "Tokenizer", opening: int, inner: Constraint | None = None):
        self._tokenizer, self._inner, self._begun = tokenizer, inner, False
        self._others = bits([opening], tokenizer.vocab_size, others=True)

    def mask(self) -> np.ndarray | None:
        mask = self._inner.mask() if self._inner is not None else None
        return mask if self._begun else narrowed(mask, self._others)

    def accept(self, id: int) -> None:
        if self._inner is not None:
            self._inner.accept(id)
        self._begun = self._begun or not self._tokenizer.token_bytes(id).isspace()

    @property
    def ended(self) -> bool:
        return self._inner is not None and self._inner.ended


def narrowed(mask: np.ndarray | None, others: np.ndarray) -> np.ndarray:
    """What both allow; as `mask` says where that is nothing."""
    both = others if mask is None else others & mask
    return both if mask is None or both.any() else mask


def one_token(tokenizer: "Tokenizer", text: str) -> int | None:
    ids = tokenizer.encode(text, special=True)
    return ids[0] if len(ids) == 1 else None


def thinking_ids(tokenizer: "Tokenizer", prompt: Prompt) -> tuple[int | None, int | None]:
    """(`<think>`, `</think>`): the first where the model may begin with it, the second where it may end thinking."""
    opening, closing = one_token(tokenizer, OPEN), one_token(tokenizer, CLOSE)
    if prompt.opens_thinking:
        return None, closing
    if opening is None or closing is None or prompt.opens_thinking is None:
        return None, None
    if prompt.begun is not None or has_ended(tokenizer, prompt):
        return None, None
    return opening, closing


def has_ended(tokenizer: "Tokenizer", prompt: Prompt) -> bool:
    """Whether the reasoning has, in the prompt: the answer itself is next."""
    return tokenizer.decode(prompt.ids[-8:]).rstrip().endswith(CLOSE)


def closed(tokenizer: "Tokenizer", prompt: Prompt) -> Prompt:
    """Where a template opens `<think>` unasked, the prompt that goes on to its end: no token of the answer is spent."""
    if not prompt.opens_thinking or one_token(tokenizer, CLOSE) is None:
        return prompt
    ids = [*prompt.ids]
    while tokenizer.decode(ids[-1:]) == "\n":
        ids.pop()
    return Prompt([*ids, *tokenizer.encode(NOTHING, special=True)], opens_thinking=False)


def bounded(
    tokenizer: "Tokenizer", prompt: Prompt, budget: int | None, inner: Constraint | None = None
) -> Constraint | None:
    """`inner` within this budget; as it is where there is no bound, or no reasoning in this prompt.

    Without any budget a prompt in which the reasoning has ended is held to that.
    """
    opening, closing = one_token(tokenizer, OPEN), thinking_ids(tokenizer, prompt)[1]
    if budget is not None and closing is not None:
        return ReasoningBudget(tokenizer, prompt, budget, inner)
    if budget == 0 and opening is not None and prompt.opens_thinking is False and has_ended(tokenizer, prompt):
        return StaysClosed(tokenizer, opening, inner)
    return inner


def as_wanted(tokenizer: "Tokenizer", prompt: Prompt, wanted: bool | None) -> tuple[Prompt, Constraint | None]:
    """A chat's prompt, and what its answer is held to. False: no reasoning, whatever template and model do."""
    if wanted is not False:
        return prompt, None
    prompt = closed(tokenizer, prompt)
    return prompt, bounded(tokenizer, prompt, 0)
