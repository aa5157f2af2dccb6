"""An answer that was begun: a last message, the assistant's, that the model goes on with instead of answering it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hetero.errors import TemplateError
from hetero.thinking import CLOSE, OPEN

# Behind the reasoning and the text of that message: where they end in what a template makes of it. Lone surrogates, as
# template_guard.MARK: no well-formed text holds one, and no template trims one away.
THOUGHT_END, TEXT_END = "\udc01", "\udc02"
REMEDY = "end with a user's message, or use a file with another chat template"


@dataclass(frozen=True)
class BegunAnswer:
    """`reasoning` None: nothing is said of it. `text` None: what comes next is reasoning."""

    reasoning: str | None
    text: str | None

    @classmethod
    def of(cls, message: Mapping[str, Any], splits: bool) -> "BegunAnswer":
        """`reasoning_content` without a content is reasoning that is not over. `splits`: so is what follows `<think>`
        in the content, up to `</think>`."""
        reasoning, text = message.get("reasoning_content") or None, message.get("content") or ""
        over = bool(text) or reasoning is None
        if reasoning is None and splits and text.lstrip().startswith(OPEN):
            reasoning, end, text = text.lstrip().removeprefix(OPEN).lstrip("\n").partition(CLOSE)
            over, text = bool(end), text.lstrip("\n")
        if reasoning is not None and over:
            reasoning = reasoning.rstrip("\n")
        return cls(reasoning, text if over else None)

    @property
    def empty(self) -> bool:
        """An answer to it begins from the start."""
        return self.reasoning is None and not self.text

    def message(self, thoughts: bool = True) -> dict[str, Any]:
        found = {"role": "assistant", "content": self.text or ""}
        return found | {"reasoning_content": self.reasoning} if thoughts and self.reasoning else found


def with_ends(message: Mapping[str, Any]) -> dict[str, Any]:
    """Not before a guard, which would take them for ill-formed text."""
    ends = {"content": TEXT_END, "reasoning_content": THOUGHT_END}
    return {**message, **{name: message[name] + end for name, end in ends.items() if name in message}}


def cut_behind(rendered: str, end: str) -> str | None:
    """What a template wrote up to this end; None where it did not write it, or not once."""
    before, found, after = rendered.partition(end)
    return before.replace(THOUGHT_END, "").replace(TEXT_END, "") if found and end not in after else None


def text_shown(rendered: str, text: str) -> str:
    """Up to the end of the message, whose text a template may have trimmed at its begin. TemplateError where it wrote
    something else."""
    shown = cut_behind(rendered, TEXT_END)
    if shown is None:
        raise TemplateError("the chat template does not show the last message", "an answer goes on at its end", REMEDY)
    if not shown.endswith(text.lstrip()):
        raise TemplateError("the chat template changes the last message", "an answer goes on with all of it", REMEDY)
    return shown
