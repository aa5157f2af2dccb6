"""What clients are told of an answer that is cut off, token by token."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hetero.generate import Prompt
from hetero.request import Ended, Generated
from hetero.sampler import Sampling
from hetero.server.choice import Choice, Delta, Finished, Said
from hetero.server.prompts import Prepared
from hetero.server.tool_calls import CallArguments, CallEnded, CallStarted
from hetero.telemetry import Telemetry
from hetero.tokenizer import Tokenizer
from hetero.tool_format import FENCED, KIMI, NAMED, ToolFormat, format_of
from tests.test_answer_text import make_tokenizer

PREPARED = Prepared(Prompt([1], opens_thinking=False), np.array([1], np.int32), Sampling())
ARGUMENTS = '{"city": "Zürich 東京"}'
WRITTEN: dict[str, tuple[Tokenizer, ToolFormat]] = {
    "named": (named := make_tokenizer(*NAMED.marks), format_of(named, "")),
    "fenced": (named, format_of(named, "```json")),
    "kimi": (kimi := make_tokenizer(*KIMI.marks), format_of(kimi, "")),
    "text": (make_tokenizer(), NAMED),
}
assert WRITTEN["fenced"][1].style == FENCED.style


def told(tokenizer: Tokenizer, prepared: Prepared, ids: list[int], reason: Any = "length") -> list[Delta]:
    choice = Choice(tokenizer, prepared)
    deltas = [delta for id in ids for delta in choice.take(Generated(id))]
    return [*deltas, *choice.take(Ended(reason, None, Telemetry()))]


def said(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, Said))


def arguments(deltas: list[Delta]) -> str:
    return "".join(delta.delta for delta in deltas if isinstance(delta, CallArguments))


@pytest.mark.parametrize("required", [True, False], ids=["required", "auto"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_that_is_cut_off_leaves_no_marks(name: str, required: bool) -> None:
    """Wherever, within a character too. Only where the marks are text, and none need come, is half of the first one
    what it looks like."""
    tokenizer, format = WRITTEN[name]
    prepared = replace(PREPARED, calls=format, only_calls=required)
    section = f"\n\n{format.calls_begin}{format.written('f', ARGUMENTS, 0)}{format.calls_end}"
    ids = tokenizer.encode(section, special=format.marked)
    certain = 0 if required else len(tokenizer.encode(f"\n\n{format.calls_begin}", special=format.marked))
    for cut in range(1, len(ids)):
        deltas = told(tokenizer, prepared, ids[:cut])
        assert deltas[-1] == Finished("length")
        if cut >= certain:
            assert not said(deltas), section[:cut]
        assert ARGUMENTS.startswith(arguments(deltas).rstrip("` \n"))
        assert sum(isinstance(delta, CallStarted) for delta in deltas) == sum(
            isinstance(delta, CallEnded) for delta in deltas
        )
    assert arguments(told(tokenizer, prepared, ids, "stop")) == ARGUMENTS
    if not required:
        before = tokenizer.encode("I look.", special=False)
        assert said(told(tokenizer, prepared, [*before, *ids[: certain + 1]])) == "I look."


@pytest.mark.parametrize("name", WRITTEN)
def test_a_stop_string_within_a_call_leaves_no_marks(name: str) -> None:
    tokenizer, format = WRITTEN[name]
    prepared = replace(PREPARED, calls=format, sampling=Sampling(stop=("weath",)))
    section = f"{format.calls_begin}{format.written('weather', '{}', 0)}"
    deltas = told(tokenizer, prepared, tokenizer.encode(section, special=format.marked), "cancelled")
    assert deltas == [Finished("stop_string", "weath")]


def test_what_the_model_ends_is_text_as_it_was_written() -> None:
    """It says itself that it was no call."""
    tokenizer, format = WRITTEN["text"]
    prepared = replace(PREPARED, calls=format)
    quoted = f"The mark is {format.calls_begin}"
    ids = tokenizer.encode(quoted, special=False)
    assert said(told(tokenizer, prepared, ids, "stop")) == quoted
    assert said(told(tokenizer, prepared, ids)) == "The mark is"


def test_white_space_within_a_document_that_was_begun_is_the_document_s() -> None:
    tokenizer, _ = WRITTEN["text"]
    for begun, expected in ((None, "{}"), ('{"a":', "  {}")):
        prompt = Prompt([1], False, begun)
        assert (
            said(told(tokenizer, replace(PREPARED, prompt=prompt, document=True), tokenizer.encode("  {}"))) == expected
        )
