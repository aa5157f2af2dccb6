"""`hetero chat`: talk to a model that runs here, or on a server."""

import os
import sys
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from hetero.commands.flags import RunFlags, SamplingFlags
from hetero.commands.model import DEMO, load_with_template
from hetero.commands.options import System, Think

if TYPE_CHECKING:
    from hetero.chat import Answers
    from hetero.terminal import Screen


@dataclass
class ServerFlags:
    """Of `chat` with a model that runs elsewhere."""

    server: Annotated[str | None, Option(metavar="URL", help="Talk to a running server, as http://127.0.0.1:8000.")] = (
        None
    )
    api_key_file: Annotated[
        str | None, Option(metavar="FILE", help="Its key, the file's first line; also HETERO_API_KEY.")
    ] = None

    def key(self) -> str | None:
        from hetero.server.settings import read_keys

        return next(iter(read_keys(self.api_key_file, {} if self.api_key_file else os.environ)), None)


def chat(
    model: Annotated[
        str | None,
        typer.Argument(help="A GGUF file (the first of a split one), or `demo`; of a server, a model it lists."),
    ] = None,
    system: System = None,
    think: Think = None,
    *,
    where: ServerFlags,
    sampling: SamplingFlags,
    run: RunFlags,
) -> None:
    """Talk to a model. Piped in, each line is a turn.

    /help lists what can be typed besides. With --server the model runs there, and the flags of Run are its own.
    """
    from hetero.chat import Chat
    from hetero.prompt import piped_turns, typed_turns
    from hetero.terminal import Screen

    screen, interactive = Screen(), sys.stdin.isatty()
    answers: Answers
    if where.server is not None:
        answers = _remote(where, model, think, sampling, run)
    else:
        answers = _local(where, model or DEMO, think, sampling, run, screen)
    with closing(answers):
        session = Chat(answers, screen)
        session.conversation.system = system
        if interactive:
            screen.note(f"{answers.name}: /help lists the commands, Ctrl-D leaves")
        session.run(typed_turns() if interactive else piped_turns(), interactive=interactive)


def _local(
    where: ServerFlags, model: str, think: bool | None, sampling: SamplingFlags, run: RunFlags, screen: "Screen"
) -> "Answers":
    from hetero.local_chat import LocalAnswers

    if where.api_key_file is not None:
        raise typer.BadParameter("it opens a server; name one with --server", param_hint="--api-key-file")
    choice = sampling.sampling()
    return LocalAnswers(*load_with_template(model, run.config(), screen), choice, think)


def _remote(
    where: ServerFlags, model: str | None, think: bool | None, sampling: SamplingFlags, run: RunFlags
) -> "Answers":
    from hetero.remote_chat import RemoteAnswers
    from hetero.remote_server import RemoteServer

    for name, value in vars(run).items():
        if value != getattr(RunFlags, name):
            flag = "--" + name.replace("_", "-")
            raise typer.BadParameter("it is for a model that is loaded here, not with --server", param_hint=flag)
    sampling.sampling()  # what is impossible is said here, in the same words
    assert where.server is not None, "the caller looked"
    return RemoteAnswers(RemoteServer(where.server, where.key()), model, sampling.given(), think)
