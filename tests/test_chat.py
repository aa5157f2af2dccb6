"""hetero.chat and what it is made of, against an engine that recites; and one session in a real terminal."""

import errno
import json
import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hetero.chat import Chat
from hetero.conversation import Conversation
from hetero.errors import FileError, HeteroError, RequestError
from hetero.generate import Answer, Prompt
from hetero.local_chat import LocalAnswers
from hetero.prompt import piped_turns, private_history
from hetero.sampler import Sampling
from hetero.terminal import Screen, printable
from hetero.thinking import Piece, ThinkingSplitter
from tests.fake_engine import FakeEngine, FakeTemplate, FakeTokenizer


def make_chat(
    *answers: str, context: int = 1000, sampling: Sampling | None = None, thinking: bool | None = None
) -> Chat:
    parts = FakeEngine(answers, context), FakeTokenizer(), FakeTemplate()
    return Chat(LocalAnswers(*parts, sampling or Sampling(), thinking), Screen())  # type: ignore[arg-type]  # fakes have what is used


def prompts(chat: Chat) -> list[str]:
    return chat.answers.engine.prompts  # type: ignore[attr-defined]  # of LocalAnswers over a FakeEngine


def contents(chat: Chat) -> list[str]:
    return [turn["content"] for turn in chat.conversation.turns]


def test_each_turn_sees_the_earlier_ones(capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat("Hello.", "Paris.")
    chat.run(["Hi", "Capital of France?"], interactive=False)
    out, err = capsys.readouterr()
    assert out == "Hello.\nParis.\n"
    assert err.count("tok/s") == 4  # prompt and generation, twice
    assert prompts(chat)[1] == "[user]Hi[assistant]Hello.[user]Capital of France?[assistant]"


def test_system_prompt_survives_clear() -> None:
    chat = make_chat("a", "b", "c")
    chat.run(["/system Be brief.\nVery.", "one", "/clear", "two", "/system", "three"], interactive=True)
    assert prompts(chat) == [
        "[system]Be brief.\nVery.[user]one[assistant]",
        "[system]Be brief.\nVery.[user]two[assistant]",
        "[user]two[assistant]b[user]three[assistant]",
    ]


def test_exit_leaves_at_once() -> None:
    chat = make_chat("a", "b")
    chat.run(["one", " /exit ", "two"], interactive=True)
    assert contents(chat) == ["one", "a"]


def test_thinking_is_told_apart_and_not_repeated_as_content(capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat("hmm\n</think>\n\n4", "5", thinking=True)
    chat.run(["2+2", "+1"], interactive=False)
    out, err = capsys.readouterr()
    assert out == "4\n"  # the second answer never leaves its thinking
    assert "hmm" in err
    assert chat.conversation.turns[1] == {"role": "assistant", "content": "4", "reasoning_content": "hmm"}


def test_interrupt_keeps_the_partial_answer_and_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat("One, two, \x03three", "four")
    chat.run(["Count", "Go on"], interactive=True)
    assert contents(chat) == ["Count", "One, two, ", "Go on", "four"]
    out, err = capsys.readouterr()
    assert out == "One, two, \nfour\n"
    assert "interrupted" in err


def test_interrupt_before_the_answer_drops_the_question(capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat("\x03", "b")
    chat.run(["one", "two"], interactive=True)
    assert contents(chat) == ["two", "b"]
    assert "the question is not kept" in capsys.readouterr().err


def test_interrupt_of_a_pipe_ends_it() -> None:
    with pytest.raises(KeyboardInterrupt):
        make_chat("\x03").run(["one"], interactive=False)


def test_too_long_a_prompt_is_refused_and_the_conversation_kept(capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat("a", "b", context=100)
    chat.run(["one", "x" * 90, "two"], interactive=True)
    assert contents(chat) == ["one", "a", "two", "b"]
    err = capsys.readouterr().err
    tokens = len("[user]one[assistant]a[user][assistant]") + 90
    assert f"{tokens} tokens" in err and "holds 100" in err and "/clear" in err and "--context" in err


def test_error_in_a_pipe_is_raised() -> None:
    with pytest.raises(RequestError):
        make_chat("a", context=10).run(["x" * 90], interactive=False)


@pytest.mark.parametrize(
    ("sampling", "context", "said"),
    [(Sampling(max_tokens=3), 1000, "cut at --max-tokens 3"), (Sampling(), 30, "the context of 30 tokens is full")],
)
def test_a_cut_answer_says_why(sampling: Sampling, context: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat("a long answer that goes on", context=context, sampling=sampling)
    chat.run(["one"], interactive=True)
    assert said in capsys.readouterr().err
    assert len(contents(chat)) == 2


def test_text_that_looks_like_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat("a file")
    chat.run(["/etc/passwd is what?", "/claer", "/save", "   "], interactive=True)
    assert contents(chat) == ["/etc/passwd is what?", "a file"]
    err = capsys.readouterr().err
    assert "/claer is not a command" in err and "/save without a usable file name" in err


def test_help_lists_every_command_and_stats_counts(capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat("12345")
    chat.run(["one", "/stats", "/help"], interactive=True)
    err = capsys.readouterr().err
    assert "2 messages" in err and "5 generated" in err
    assert all(f"\n{command} " in f"\n{err}" for command in [*chat._commands, "/exit"])


def test_save_and_load(tmp_path: Path) -> None:
    chat = make_chat("<think>so</think>a é\n", "b", "c")
    name = tmp_path / "with space.json"
    chat.run(["/system S", "one", f"/save {name}", "/clear", "two", f"/load {name}", "three"], interactive=True)
    assert contents(chat) == ["one", "a é\n", "three", "c"]
    assert chat.conversation.turns[1]["reasoning_content"] == "so"
    assert prompts(chat)[2] == "[system]S[user]one[assistant]a é\n[user]three[assistant]"
    assert stat.S_IMODE(name.stat().st_mode) == 0o600
    assert json.loads(name.read_text())["messages"][0] == {"role": "system", "content": "S"}


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "kept.json"
    target.write_text("precious")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Conversation("S").save(target)
    assert target.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


def test_save_follows_a_link_and_keeps_the_mode(tmp_path: Path) -> None:
    target, link = tmp_path / "there.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o644)
    link.symlink_to(target)
    Conversation("S").save(link)
    assert link.is_symlink() and "S" in target.read_text()
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    with pytest.raises(IsADirectoryError):
        Conversation("S").save(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"messages": 3}',
        '{"messages": ["x"]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "root", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": 3}]}',
        '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_loading_a_bad_file_changes_nothing(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(text, errors="surrogateescape")
    with pytest.raises(FileError, match="not a saved chat"):
        Conversation.load(bad)
    chat = make_chat("a", "b")
    chat.run(["one", f"/load {bad}", "/load /nowhere/at-all", f"/load {tmp_path}", "two"], interactive=True)
    assert contents(chat) == ["one", "a", "two", "b"]
    assert capsys.readouterr().err.count("hetero: ") == 3


def splits(text: str) -> list[list[str]]:
    return [[text], list(text), [text[:3], text[3:]], [text[:9], text[9:]]]


@pytest.mark.parametrize(
    ("opened", "text", "thinking", "answer"),
    [
        (True, "\nI see</think>\n\nYes.", "I see", "Yes."),
        (True, "never closed </thi", "never closed </thi", ""),
        (True, "\n</think>\n\nYes.", "", "Yes."),
        (True, "one\n\n\ntwo\n</thi\n\n</think>Yes.", "one\n\n\ntwo\n</thi", "Yes."),
        (True, "</think>Yes </think> <think>", "", "Yes </think> <think>"),
        (False, "<think>\nI see\n</think>\n\nYes\n", "I see", "Yes\n"),
        (False, " \n<think>x</think>y", "x", "y"),
        (False, "Plain <think>text</think>", "", "Plain <think>text</think>"),
        (False, "  <thin ice", "", "  <thin ice"),
        (False, "<th", "", "<th"),
        (False, "", "", ""),
    ],
)
def test_thinking_splitter(opened: bool, text: str, thinking: str, answer: str) -> None:
    for parts in splits(text):
        splitter = ThinkingSplitter(opened)
        pieces = [piece for part in parts for piece in splitter.push(part)] + splitter.flush()
        assert "".join(p.text for p in pieces if p.thinking) == thinking
        assert "".join(p.text for p in pieces if not p.thinking) == answer


@pytest.mark.parametrize(
    ("prompt", "stop", "max_tokens", "text", "reason"),
    [
        (Prompt([1]), (), None, "<think>abc", "stop"),
        (Prompt([1]), ("c",), None, "<think>ab", "stop"),
        (Prompt([1]), ("bcd", "cx"), None, "<think>abc", "stop"),
        (Prompt([1]), (), 10, "<think>abc", "length"),
        (Prompt([1]), (), 11, "<think>abc", "stop"),
        (Prompt([1]), ("c",), 10, "<think>ab", "stop"),
        (Prompt([1], opens_thinking=True), ("k",), None, "", "stop"),
        (Prompt([1] * 992), (), None, "<think>ab", "length"),
    ],
)
def test_answer_ends_for_the_right_reason(
    prompt: Prompt, stop: tuple[str, ...], max_tokens: int | None, text: str, reason: str
) -> None:
    engine, sampling = FakeEngine(["<think>abc\0never"]), Sampling(stop=stop, max_tokens=max_tokens)
    answer = Answer(engine, FakeTokenizer(), prompt, sampling)  # type: ignore[arg-type]  # fakes have what is used
    assert answer.finish_reason == "interrupted"
    shown = list(answer)
    assert (answer.text, answer.finish_reason) == (text, reason)
    assert "".join(piece.text for piece in shown if not piece.thinking) == text


def test_stop_strings_do_not_look_at_the_thinking() -> None:
    engine, sampling = FakeEngine(["a. b</think>c. d"]), Sampling(stop=(".",))
    answer = Answer(engine, FakeTokenizer(), Prompt([1], opens_thinking=True), sampling)  # type: ignore[arg-type]  # fakes have what is used
    list(answer)
    assert (answer.thinking, answer.text, answer.finish_reason) == ("a. b", "c", "stop")


def test_printable_removes_what_steers_a_terminal() -> None:
    assert printable("a\x1b[31mb\x07\x9b1m\tc\r\nd\x7f\x00é€") == "a[31mb1m\tc\ndé€"


def test_stream_ends_the_line_when_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces():
        yield Piece("half", False)
        raise HeteroError("broken")

    with pytest.raises(HeteroError):
        Screen().stream(pieces())
    assert capsys.readouterr().out == "half\n"


def test_history_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state" / "hetero" / "chat_history"
    history = private_history(path)
    history.append_string("secret\nlines")
    assert "secret" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(private_history(path).load_history_strings()) == ["secret\nlines"]
    (tmp_path / "file").write_text("")
    private_history(tmp_path / "file" / "below").append_string("kept in memory only")


def test_piped_lines_are_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", ["one\r\n", "\n", "  two"])
    assert list(piped_turns()) == ["one", "  two"]


class Terminal:
    """A program in a pseudo-terminal of its own: write keys, wait for what appears."""

    def __init__(self, *command: str, home: Path):
        self.master, slave = pty.openpty()
        environment = os.environ | {"XDG_STATE_HOME": str(home), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            command, preexec_fn=lambda: os.login_tty(slave), env=environment, cwd=Path(__file__).parent.parent
        )
        os.close(slave)
        self.seen = ""

    def expect(self, pattern: str, seconds: float = 30.0) -> str:
        """Waits until `pattern` appears after what was expected before; returns the text up to its end."""
        end = time.monotonic() + seconds
        while (match := re.search(pattern, self.seen)) is None:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{pattern!r} did not appear in {self.seen!r}"
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # the program has ended
                raise AssertionError(f"{pattern!r} did not appear in {self.seen!r}") from None
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def close(self) -> int:
        status = self.process.wait(30)
        os.close(self.master)
        return status


PROMPT = r"\x1b\[\?2004h(.|\n)*>"  # bracketed paste is on, so the program reads


def test_session_in_a_terminal(tmp_path: Path) -> None:
    terminal = Terminal(sys.executable, "-m", "tests.fake_engine", "0.02", home=tmp_path)
    terminal.expect(PROMPT)
    terminal.type("hello\r")
    shown = terminal.expect(r"tok/s.*tok/s")
    assert "\x1b[2mh\x1b[0m" in shown, "the thinking is dimmed"
    assert "\x07" not in shown.split("answer", 1)[1] and "]0;evil" in shown.replace("\x1b[0m", "")
    terminal.expect(PROMPT)
    terminal.type("half a line\x03")  # Ctrl-C clears it
    terminal.expect(PROMPT)
    terminal.type("\x1b[200~pasted\nas one\nturn\x1b[201~")
    terminal.type("\r")
    terminal.expect("answer 2")
    terminal.type("\x03")  # ends the answer, not the program
    terminal.expect("interrupted")
    terminal.expect(PROMPT)
    terminal.type("again\r")
    terminal.expect(r"answer 3(.|\n)*tok/s.*tok/s")
    terminal.expect(PROMPT)
    terminal.type("\x04")
    left = terminal.expect(r"left \[.*\]")
    assert terminal.close() == 0
    turns = left[left.index("left [") :]
    assert "'hello'" in turns and "'pasted\\nas one\\nturn', 'answer 2" in turns and "'again'" in turns
    assert "half a line" not in turns
    assert "+pasted\n+as one\n" in (tmp_path / "hetero" / "chat_history").read_text()


def test_the_bundled_model_answers_in_a_terminal(tmp_path: Path) -> None:
    terminal = Terminal(sys.executable, "-m", "cli", "chat", "--temperature", "0", home=tmp_path)
    for question, answer in (("What is the capital of France?", "Paris"), ("What is 2 + 3?", "5")):
        terminal.expect(PROMPT, seconds=300)  # kernels may have to be compiled
        terminal.type(f"{question}\r")
        terminal.expect(r"\x1b\[\?2004l")  # the question is taken
        assert re.search(rf"\b{answer}\b", terminal.expect(r"tok/s.*tok/s").split("prompt ")[0])
    terminal.expect(PROMPT)
    terminal.type("/exit\r")
    assert terminal.close() == 0
