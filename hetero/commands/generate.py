"""`hetero generate`: one prompt, one answer."""

import json
import sys
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Option

from hetero.commands.flags import RunFlags, SamplingFlags
from hetero.commands.model import DEMO, Model, load_with_template
from hetero.commands.options import Json, System, Think


@dataclass
class PromptFlags:
    """What `generate` answers, and how."""

    prompt: Annotated[str | None, Option("--prompt", "-p", help="The prompt; `-` or none reads stdin.")] = None
    raw: Annotated[bool, Option("--raw", help="Continue the text, without the chat template.")] = False
    system: System = None
    think: Think = None
    as_json: Json = False

    def text(self) -> str:
        if self.prompt is not None and self.prompt != "-":
            return self.prompt
        if self.prompt is None and sys.stdin.isatty():
            raise typer.BadParameter("no prompt: give -p TEXT, or pipe one in", param_hint="--prompt")
        return sys.stdin.read()


def generate(model: Model = DEMO, *, flags: PromptFlags, sampling: SamplingFlags, run: RunFlags) -> None:
    """Answer one prompt. The text goes to stdout, everything else to stderr."""
    from hetero.conversation import Conversation
    from hetero.generate import Answer, chat_prompt, check_room, text_prompt
    from hetero.reasoning_budget import as_wanted
    from hetero.terminal import Screen

    text, screen, choice = flags.text(), Screen(), sampling.sampling()
    engine, tokenizer, template = load_with_template(model, run.config(), screen)
    with closing(engine):
        if flags.raw:
            prompt, constraint = text_prompt(tokenizer, text), None
        else:
            asked = chat_prompt(template, Conversation(flags.system).with_user(text), flags.think)
            prompt, constraint = as_wanted(tokenizer, asked, flags.think)
        check_room(prompt, engine.context, "shorten it, or raise --context")
        answer = Answer(engine, tokenizer, prompt, choice, constraint)
        if flags.as_json:
            for _ in answer:
                pass
            print(json.dumps(answer.document(model), ensure_ascii=False, indent=1))
        else:
            screen.stream(answer)
            screen.note(str(engine.telemetry))
