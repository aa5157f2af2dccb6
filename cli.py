"""The `hetero` command. Its verbs stand in hetero/commands, one file each.

Exit status: 0 done (also when the reader of a pipe went away), 1 the user's mistake, 2 wrong usage, 130 interrupted.
"""

import os
import sys
from io import TextIOWrapper
from typing import Annotated

import typer
from typer import Option

from hetero.commands.bench import bench
from hetero.commands.chat import chat
from hetero.commands.doctor import doctor
from hetero.commands.eval import eval
from hetero.commands.generate import generate
from hetero.commands.inspect import inspect
from hetero.commands.plan import plan
from hetero.commands.serve import serve
from hetero.commands.verb import command_of

VERBS = (chat, generate, serve, plan, bench, eval, inspect, doctor)  # as --help lists them

app = typer.Typer(
    help="DeepSeek-V3/R1-class models on one workstation: GGUF files in, tokens out.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in VERBS:
    app.command()(command_of(verb))


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from hetero import __version__

        print(f"hetero {__version__}")
        raise typer.Exit


def main() -> None:
    # A stream the shell closed (`<&-`, `>&-`) is None here. Those put in their place stay open as long as the process.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # bad bytes in, or a terminal that is not UTF-8
    app()


if __name__ == "__main__":
    main()
