"""How a verb's function becomes a command: its flags become options, what goes wrong a line and an exit status."""

import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

import typer


def command_of(function: Callable[..., None]) -> Callable[..., None]:
    """A parameter whose type is a dataclass of flags becomes one option for each of its fields."""
    parameters, groups = [], {}
    hints = get_type_hints(function, include_extras=True)
    for parameter in signature(function).parameters.values():
        kind = hints[parameter.name]
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
            parameters += _options(kind)
        else:
            parameters.append(parameter.replace(annotation=kind, kind=parameter.KEYWORD_ONLY))

    def command(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{part.name: values.pop(part.name) for part in fields(kind)})
        raise typer.Exit(guarded(lambda: function(**values)))

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what typer reads; mypy does not know it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _options(kind: type) -> list[Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    options = []
    for part in fields(kind):
        default = Parameter.empty if part.default is MISSING else part.default
        options.append(Parameter(part.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[part.name]))
    return options


def guarded(run: Callable[[], None]) -> int:
    """Exit status of `run`; what a user can cause is one line on stderr."""
    from hetero.errors import HeteroError

    try:
        run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` for one, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (HeteroError, OSError) as error:
        from hetero.terminal import Screen

        Screen().error(error)
        return 1
    return 0
