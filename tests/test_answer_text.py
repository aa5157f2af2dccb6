"""Token ids to shown text: thinking, stop strings, the marks of tool calls."""

import pytest
from tokenizers import pre_tokenizers

from hetero.errors import RequestError
from hetero.generate import MARK, AnswerText, Prompt
from hetero.server.tool_calls import CallArguments, CallEnded, CallStarted, ToolCallParser
from hetero.thinking import Piece
from hetero.tokenizer import CONTROL, NORMAL, USER_DEFINED, Tokenizer
from hetero.tool_format import FENCED, KIMI, NAMED, ToolFormat, check_names, format_of

END = "<｜end▁of▁sentence｜>"


def make_tokenizer(*special: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, END, *special, "<think>", "</think>"]
    types = [NORMAL] * len(alphabet) + [CONTROL] * (1 + len(special)) + [USER_DEFINED] * 2
    return Tokenizer(tokens, types, [], "deepseek-v3", special_ids={"eos": len(alphabet)})


TOKENIZER = make_tokenizer(*NAMED.marks)
FORMAT = format_of(TOKENIZER, "")


def shown(ids: list[int], text: AnswerText) -> list[Piece]:
    pieces = []
    for id in ids:
        pieces += text.push(id)
        if text.stopped:
            return pieces
    return pieces + text.finish()


def joined(pieces: list[Piece], thinking: bool) -> str:
    return "".join(piece.text for piece in pieces if piece.thinking == thinking)


@pytest.mark.parametrize(
    ("opened", "stop", "answer", "thinking", "text", "found"),
    [
        (True, (), "hm ü</think>\n\n日本 Z", "hm ü", "日本 Z", None),
        (True, ("Z", "本"), "Z本</think>日本 Z", "Z本", "日", "本"),
        (False, ("ab", "abc"), "xabcd", "", "x", "ab"),
        (False, ("abc",), "xab", "", "xab", None),
        (None, ("k>",), "<think>a", "", "<thin", "k>"),
        (None, (), "a</think>", "", "a</think>", None),
    ],
)
def test_pieces(
    opened: bool | None, stop: tuple[str, ...], answer: str, thinking: str, text: str, found: str | None
) -> None:
    answer_text = AnswerText(TOKENIZER, Prompt([1], opened), stop)
    pieces = shown(TOKENIZER.encode(answer, special=True), answer_text)
    assert (joined(pieces, True), joined(pieces, False)) == (thinking, text)
    assert (answer_text.stopped, answer_text.stop_string) == (found is not None, found)
    assert all(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("opened", "begun", "answer", "thinking", "text"),
    [
        (False, "So", "<think>a</think>b", "", "<think>a</think>b"),
        (False, "So", "\n\nb", "", "\n\nb"),
        (False, "", "\n\nb", "", "\n\nb"),
        (True, "", "\n\nNow\n</think>\n\nb", "\n\nNow", "b"),
        (True, "", "</think>b", "", "b"),
        (True, None, "\n\nNow\n</think>\n\nb", "Now", "b"),
    ],
)
def test_what_was_begun_goes_on(opened: bool, begun: str | None, answer: str, thinking: str, text: str) -> None:
    """Line breaks within it are its own, and nothing but reasoning is reasoning."""
    pieces = shown(TOKENIZER.encode(answer, special=True), AnswerText(TOKENIZER, Prompt([1], opened, begun), ()))
    assert (joined(pieces, True), joined(pieces, False)) == (thinking, text)


def test_stop_strings_look_at_new_text() -> None:
    answer_text = AnswerText(TOKENIZER, Prompt([1], False, "ab"), ("abc", "cd"))
    assert joined(shown(TOKENIZER.encode("cxcd"), answer_text), False) == "cx"
    assert answer_text.stop_string == "cd"


def test_a_broken_character_is_shown_at_the_end() -> None:
    ids = TOKENIZER.encode("aé")[:-1]
    assert shown(ids, AnswerText(TOKENIZER, Prompt([1], False), ())) == [Piece("a", False), Piece("\ufffd", False)]


def test_tokens_are_marked_and_text_is_not() -> None:
    section = f"{FORMAT.calls_begin}{FORMAT.written('f', '{}', 0)}{FORMAT.calls_end}"
    answer_text = AnswerText(TOKENIZER, Prompt([1], True), (), frozenset(FORMAT.ids))
    broken = TOKENIZER.encode("é")[:1]
    ids = [
        *TOKENIZER.encode(f"I may write {section}</think>As text: {section}", special=False),
        *broken,
        *TOKENIZER.encode(section, special=True),
    ]
    ids = [*TOKENIZER.encode(section, special=True), TOKENIZER.encode("</think>")[0], *ids]
    pieces = shown(ids, answer_text)
    assert MARK not in joined(pieces, True), "the parser never sees the thinking"
    parser = ToolCallParser(FORMAT)
    parts = [part for piece in pieces if not piece.thinking for part in parser.push(piece.text)] + parser.finish()
    texts = "".join(part for part in parts if isinstance(part, str))
    assert texts == f"I may write {section}</think>As text: {section}\ufffd"
    calls = [part for part in parts if not isinstance(part, str)]
    assert isinstance(calls[0], CallStarted) and calls[0].name == "f"
    assert calls[1:] == [CallArguments(0, "{"), CallArguments(0, "}"), CallEnded(0)]


def test_without_marks_nothing_is_marked() -> None:
    ids = TOKENIZER.encode(f"a{FORMAT.calls_begin}", special=True)
    assert joined(shown(ids, AnswerText(TOKENIZER, Prompt([1], False), ())), False) == f"a{FORMAT.calls_begin}"


@pytest.mark.parametrize(
    ("special", "source", "style", "marked"),
    [
        (NAMED.marks, "", "named", True),
        (NAMED.marks, "... '```json' + '\\n' ...", "fenced", True),
        (KIMI.marks, "```json", "kimi", True),
        ((), "```json", "named", False),
        (NAMED.marks[:3], "", "named", False),
    ],
)
def test_formats(special: tuple[str, ...], source: str, style: str, marked: bool) -> None:
    tokenizer = make_tokenizer(*special)
    format = format_of(tokenizer, source)
    assert (format.style, format.marked) == (style, marked)
    if marked:
        assert [tokenizer.token_text(id) for id in format.ids] == list(special)


@pytest.mark.parametrize("name", ["", "a b", "f\n", "x" * 129, END, "é"])
def test_names_that_no_answer_could_hold(name: str) -> None:
    check_names([{"type": "function", "function": {"name": "get-it_2.0"}}])
    with pytest.raises(RequestError, match=r"letters, digits.*rename"):
        check_names([{"type": "function", "function": {"name": name}}])


def test_descriptions_follow_the_form() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "Finds ü.", "parameters": {"type": "object"}}}
    expected = (
        "## Tools\nYou have access to the following tools:\n\n"
        '### f\nDescription: Finds ü.\n\nParameters: {"type": "object"}\n\n'
        "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>"
        "{additional_tool_calls}<｜tool▁calls▁end｜>\n\n"
        "Where:\n- `tool_call_name` must be an exact match to one of the available tools\n"
    )
    assert NAMED.description([tool]).startswith(expected)
    format: ToolFormat = FENCED
    assert "function<｜tool▁sep｜>tool_call_name\n```json\ntool_call_arguments\n```" in format.description([tool])
    assert "### g\nDescription: \n\nParameters: {}" in NAMED.description([{"function": {"name": "g"}}])
