"""The model that a verb is for: a file, or the bundled one."""

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hetero.engine import Engine
    from hetero.run_config import RunConfig
    from hetero.template import ChatTemplate
    from hetero.terminal import Screen
    from hetero.tokenizer import Tokenizer

DEMO = "demo"
Model = Annotated[str, typer.Argument(help="A GGUF file (the first of a split one), or `demo`, the bundled model.")]
File = Annotated[str, typer.Argument(help="A GGUF file (the first of a split one), or `demo`.")]


def path_of(model: str, flag: str = "hetero plan --preset") -> str:
    """Of a file. A preset's name, where there is no such file, is refused: `flag` takes it."""
    if model == DEMO:
        from hetero import demo

        return str(demo.path())
    if ":" in model and not os.path.lexists(model):
        from hetero.errors import RequestError
        from placement.presets import UnknownPreset, canonical

        with suppress(UnknownPreset):
            canonical(model)
            raise RequestError(f"there is no file {model}", "a preset has this name", f"use {flag} {model}")
    return model


def load_with_template(model: str, run: "RunConfig", screen: "Screen") -> "tuple[Engine, Tokenizer, ChatTemplate]":
    from hetero.progress import load_shown
    from hetero.template import ChatTemplate

    engine, tokenizer = load_shown(path_of(model), run, screen)
    return engine, tokenizer, ChatTemplate.from_gguf(engine.file, tokenizer)
