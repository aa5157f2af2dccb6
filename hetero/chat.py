"""A conversation in the terminal: turns, commands, and the speeds after each answer."""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hetero.conversation import Conversation
from hetero.errors import HeteroError, RequestError
from hetero.generate import Answer, chat_prompt, check_room
from hetero.sampler import Sampling
from hetero.terminal import Screen

if TYPE_CHECKING:
    from hetero.engine import Engine
    from hetero.template import ChatTemplate
    from hetero.tokenizer import Tokenizer

HELP = """\
/help          this list
/system TEXT   set the system prompt; without TEXT, remove it
/clear         forget the conversation, keep the system prompt
/save FILE     write the conversation to FILE
/load FILE     go on with the conversation in FILE
/stats         tokens in the context, speeds
/exit          leave (also Ctrl-D)
Enter sends, Alt-Enter starts a new line, pasted text is taken whole. Ctrl-C ends an answer, or clears the line."""

_COMMAND = re.compile(r"(/[a-z]+)(?:\s+(.*))?", re.DOTALL)  # `/etc/passwd` is text, `/claer` a mistake


class Chat:
    """Errors and Ctrl-C end a turn, not the conversation."""

    def __init__(
        self,
        engine: "Engine",
        tokenizer: "Tokenizer",
        template: "ChatTemplate",
        sampling: Sampling,
        screen: Screen,
        thinking: bool | None = None,  # None: as the template does by itself
    ):
        self.engine, self.tokenizer, self.template = engine, tokenizer, template
        self.sampling, self.screen, self.thinking = sampling, screen, thinking
        self.conversation = Conversation()
        self._generated = 0
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/system": self._system,
            "/clear": self._clear,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
        }

    def run(self, turns: Iterable[str], *, interactive: bool) -> None:
        """Not interactive: the first error or Ctrl-C ends it, as in any other program that reads a pipe."""
        for text in turns:
            if text.strip() == "/exit":
                return
            try:
                self.handle(text)
            except (HeteroError, OSError) as error:
                if not interactive or isinstance(error, BrokenPipeError):
                    raise
                self.screen.error(error)
            except KeyboardInterrupt:
                if not interactive:
                    raise
                self.screen.note("interrupted")

    def handle(self, text: str) -> None:
        if not text.strip():
            return
        match = _COMMAND.fullmatch(text.strip())
        if match is None:
            self.turn(text)
        elif match[1] in self._commands:
            self._commands[match[1]]((match[2] or "").strip())
        else:
            raise RequestError(f"{match[1]} is not a command", remedy="/help lists them")

    def turn(self, text: str) -> None:
        prompt = chat_prompt(self.template, self.conversation.with_user(text), self.thinking)
        check_room(prompt, self.engine.context, "/clear forgets the conversation, a larger --context holds more")
        answer = Answer(self.engine, self.tokenizer, prompt, self.sampling)
        try:
            self.screen.stream(answer)
        finally:
            # An answer that was cut short is kept, so that the person may say "go on"; a turn without one is not.
            if answer.text or answer.finish_reason != "interrupted":
                self.conversation.add(text, answer.text, answer.thinking)
            else:
                self.screen.note("no answer yet, so the question is not kept")
            self._generated += answer.tokens
        if answer.finish_reason == "length":
            self.screen.note(self._why_cut(answer))
        self.screen.note(str(self.engine.telemetry))

    def _why_cut(self, answer: Answer) -> str:
        if self.sampling.max_tokens is not None and answer.tokens >= self.sampling.max_tokens:
            return f"cut at --max-tokens {self.sampling.max_tokens}"
        return f"the context of {self.engine.context:,} tokens is full: /clear, or start with a larger --context"

    def _help(self, argument: str) -> None:
        self.screen.note(HELP)

    def _system(self, text: str) -> None:
        self.conversation.system = text or None
        self.screen.note("system prompt set" if text else "no system prompt")

    def _clear(self, argument: str) -> None:
        self.conversation = Conversation(self.conversation.system)
        self.screen.note("the conversation is forgotten")

    def _save(self, name: str) -> None:
        target = self.conversation.save(_file_name(name, "/save"))
        self.screen.note(f"{len(self.conversation.turns)} messages saved to {target}")

    def _load(self, name: str) -> None:
        self.conversation = Conversation.load(_file_name(name, "/load"))
        self.screen.note(f"{len(self.conversation.turns)} messages loaded")

    def _stats(self, argument: str) -> None:
        engine = self.engine
        self.screen.note(
            f"{len(self.conversation.turns)} messages; {engine.tokens_cached:,} of {engine.context:,} tokens cached,"
            f" {self._generated:,} generated"
        )
        if engine.telemetry.prompt_tokens:
            self.screen.note(f"last answer: {engine.telemetry}")


def _file_name(name: str, command: str) -> str:
    if not name or "\0" in name:
        raise RequestError(f"{command} without a usable file name", remedy=f"write {command} FILE")
    return name
