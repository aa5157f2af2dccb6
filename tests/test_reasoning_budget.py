"""The bound on thinking: what is forced, when, and what comes after it."""

import numpy as np
import pytest

from hetero import demo
from hetero.continuation import Constraint
from hetero.generate import Prompt
from hetero.gguf import open_gguf
from hetero.reasoning_budget import ReasoningBudget, StaysClosed, bounded
from hetero.server.constraints import Vocabulary, constraint_for
from hetero.server.grammar import Schema
from hetero.tokenizer import Tokenizer

THINKS = Prompt([1], opens_thinking=True)
MAY_THINK = Prompt([1], opens_thinking=False)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    with open_gguf(demo.path()) as file:
        return Vocabulary(Tokenizer.from_gguf(file))


def choices(constraint: Constraint) -> list[int]:
    """What may come; empty where anything may."""
    mask = constraint.mask()
    return [] if mask is None else np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def only(constraint: Constraint) -> int | None:
    """The one token that may come; None where there is a choice."""
    found = choices(constraint)
    return found[0] if len(found) == 1 else None


def forced(constraint: Constraint) -> list[int]:
    ids = []
    while (id := only(constraint)) is not None:
        constraint.accept(id)
        ids.append(id)
    return ids


def test_the_end_is_forced_token_by_token(vocabulary: Vocabulary) -> None:
    encode = vocabulary.tokenizer.encode
    ending = encode("\n</think>\n\n")
    constraint = ReasoningBudget(vocabulary.tokenizer, THINKS, 5)
    for id in range(300, 305):
        assert only(constraint) is None
        constraint.accept(id)
    assert forced(constraint) == ending
    assert constraint.tokens == 5 and not constraint.ended
    (closing,) = encode("</think>", special=True)
    for id in encode("the answer is free, but does not end the thinking again"):
        constraint.accept(id)
        assert set(range(vocabulary.size)) - set(choices(constraint)) == {closing}
    assert constraint.tokens == 5


def test_nothing_is_forced_in_time(vocabulary: Vocabulary) -> None:
    constraint = ReasoningBudget(vocabulary.tokenizer, THINKS, 100)
    for id in vocabulary.tokenizer.encode("brief</think>" + "and " * 200):
        constraint.accept(id)
        assert constraint.mask() is None
    assert constraint.tokens == len(vocabulary.tokenizer.encode("brief"))


def test_what_was_cut_off_is_answered(vocabulary: Vocabulary) -> None:
    """The first token after what was forced does not end the text; nothing else is forbidden."""
    stops = vocabulary.tokenizer.stop_ids
    make = constraint_for(vocabulary, THINKS, schema=Schema({"type": "integer"}, strict=True))
    assert make is not None
    free, ended = (ReasoningBudget(vocabulary.tokenizer, THINKS, budget) for budget in (2, 100))
    held = ReasoningBudget(vocabulary.tokenizer, THINKS, 2, make())
    for constraint, most in ((free, vocabulary.size - len(stops)), (held, 100)):
        for id in (300, 301):
            constraint.accept(id)
        forced(constraint)
        found = choices(constraint)
        assert not stops & set(found) and 1 < len(found) <= most
        constraint.accept(vocabulary.tokenizer.encode("7")[0])
        assert stops <= set(choices(constraint))
    for id in vocabulary.tokenizer.encode("short</think>"):
        ended.accept(id)
    assert ended.mask() is None, "what came to its end by itself is left alone"


def test_no_budget_at_all(vocabulary: Vocabulary) -> None:
    constraint = ReasoningBudget(vocabulary.tokenizer, THINKS, 0)
    assert vocabulary.tokenizer.decode(forced(constraint)) == "\n</think>\n\n"
    assert constraint.tokens == 0


def test_no_character_is_cut(vocabulary: Vocabulary) -> None:
    letter = vocabulary.tokenizer.encode("鿆")
    assert len(letter) == 3, "a character of three tokens"
    constraint = ReasoningBudget(vocabulary.tokenizer, THINKS, 1)
    for id in letter:
        assert only(constraint) is None
        constraint.accept(id)
    assert forced(constraint)
    constraint = ReasoningBudget(vocabulary.tokenizer, THINKS, 1)
    for _ in range(4):  # what never becomes a character does not delay it for ever
        assert only(constraint) is None
        constraint.accept(letter[0])
    assert forced(constraint)


def test_thinking_that_the_model_may_begin(vocabulary: Vocabulary) -> None:
    encode = vocabulary.tokenizer.encode
    silent, thinks = (ReasoningBudget(vocabulary.tokenizer, MAY_THINK, 1) for _ in range(2))
    for id in encode("no thoughts here"):
        silent.accept(id)
        assert silent.mask() is None
    assert silent.tokens == 0
    for id in encode("<think>")[:1] + encode(" word")[:1]:
        assert thinks.mask() is None
        thinks.accept(id)
    assert forced(thinks) and thinks.tokens == 1


def test_thinking_behind_white_space_is_bounded(vocabulary: Vocabulary) -> None:
    constraint = ReasoningBudget(vocabulary.tokenizer, MAY_THINK, 0)
    for id in vocabulary.tokenizer.encode(" \n") + vocabulary.tokenizer.encode("<think>", special=True):
        assert constraint.mask() is None
        constraint.accept(id)
    assert vocabulary.tokenizer.decode(forced(constraint)) == "\n</think>\n\n"
    assert vocabulary.tokenizer.encode("<think>", special=True)[0] not in choices(constraint), "nor begun again"


def test_what_stays_closed(vocabulary: Vocabulary) -> None:
    """Not behind white space either; a later mark is the answer's text, and a grammar inside is kept to."""
    encode = vocabulary.tokenizer.encode
    (opening,), (letter,) = encode("<think>", special=True), encode("7")
    closed = Prompt(encode("</think>", special=True), opens_thinking=False)
    constraint = bounded(vocabulary.tokenizer, closed, 0)
    assert isinstance(constraint, StaysClosed)
    for id in encode("\n") + encode(" "):
        assert set(range(vocabulary.size)) - set(choices(constraint)) == {opening}
        constraint.accept(id)
    assert opening not in choices(constraint)
    constraint.accept(letter)
    assert constraint.mask() is None and not constraint.ended
    make = constraint_for(vocabulary, closed, schema=Schema({"const": 7}, strict=True))
    assert make is not None
    held = bounded(vocabulary.tokenizer, closed, 0, make())
    assert held is not None and letter in choices(held) and len(choices(held)) < 100
    held.accept(letter)
    assert held.ended
    for budget, prompt in ((None, closed), (5, closed), (0, Prompt(closed.ids))):
        assert bounded(vocabulary.tokenizer, prompt, budget) is None, "no wish, a bound, plain text"


def test_what_follows_is_held_to_the_grammar(vocabulary: Vocabulary) -> None:
    for prompt in (THINKS, MAY_THINK):
        make = constraint_for(vocabulary, prompt, schema=Schema({"const": 7}, strict=True))
        assert make is not None
        constraint = bounded(vocabulary.tokenizer, prompt, 2, make())
        assert constraint is not None
        for id in [*vocabulary.tokenizer.encode("<think>" if prompt is MAY_THINK else ""), 300, 301]:
            constraint.accept(id)
        forced(constraint)
        for id in vocabulary.tokenizer.encode("7"):
            constraint.accept(id)
        assert constraint.ended


def test_bounds_only_where_there_is_thinking(vocabulary: Vocabulary) -> None:
    make = constraint_for(vocabulary, THINKS, schema=Schema({}))
    assert make is not None
    inner = make()
    assert bounded(vocabulary.tokenizer, THINKS, None, inner) is inner
    assert bounded(vocabulary.tokenizer, THINKS, None) is None
    closed = Prompt(vocabulary.tokenizer.encode("</think>"), opens_thinking=False)
    assert bounded(vocabulary.tokenizer, closed, 5, inner) is inner
    assert isinstance(bounded(vocabulary.tokenizer, THINKS, 5), ReasoningBudget)
