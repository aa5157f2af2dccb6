"""Where a person types: line editing, history, and pasted text taken whole."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output

PROMPT = "> "


def typed_turns(input: Input | None = None, output: Output | None = None) -> Iterator[str]:
    """Yields what the person enters until Ctrl-D. Ctrl-C clears the line.

    Enter sends, Alt-Enter starts a new line; a paste keeps its lines (bracketed paste) and waits for Enter.
    """
    session: PromptSession[str] = PromptSession(
        PROMPT,
        history=private_history(state_directory() / "chat_history"),
        key_bindings=_keys(),
        input=input,
        output=output or create_output(always_prefer_tty=True),
    )
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def piped_turns() -> Iterator[str]:
    """Each line of stdin is a turn; empty lines are not."""
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\r\n")


def private_history(path: Path) -> History:
    """A file only its owner can read; without a place to write to, the history lasts for this session."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return _FileHistory(str(path))


class _FileHistory(FileHistory):
    def store_string(self, string: str) -> None:
        with suppress(OSError):  # a full disk is no reason to lose the conversation
            super().store_string(string)


def state_directory() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "hetero"


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
