"""The chat template of a model: messages to text, and to the token ids that only the template may make special."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hetero.begun_answer import REMEDY, THOUGHT_END, BegunAnswer, cut_behind, text_shown, with_ends
from hetero.errors import TemplateError
from hetero.template_guard import MARK, Guard
from hetero.template_tools import Habits, habits_of, with_tools
from hetero.thinking import CLOSE, OPEN
from hetero.tokenizer import CONTROL, USER_DEFINED, HasMetadata, Tokenizer
from hetero.tool_format import format_of

SECONDS = 10.0  # a known model's template takes a millisecond
REPLY_LIMIT = 64 << 20  # bytes; a character of the prompt takes up to twelve
# What Python needs to start, and the date to be right. Nothing else: a key of the server is in its environment.
INHERITED = ("LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ")

# DeepSeek's V3 and R1 format, for files that carry no template; tool calls as in V3.1. Thoughts of earlier turns are
# left out, as in theirs. After what tools answered the model goes on in its turn.
DEEPSEEK = """
{{- bos_token -}}
{%- for message in messages if message.role == 'system' -%}
  {{- ('' if loop.first else '\n\n') + message.content -}}
{%- endfor -%}
{%- set turn = namespace(open=false) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{- '<｜User｜>' + message.content -}}
    {%- set turn.open = false -%}
  {%- elif message.role == 'assistant' -%}
    {{- ('' if turn.open else '<｜Assistant｜>') + message.content.split('</think>')[-1] -}}
    {%- for call in message.tool_calls or [] -%}
      {{- '<｜tool▁calls▁begin｜>' if loop.first -}}
      {{- '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' -}}
      {{- call.function.arguments + '<｜tool▁call▁end｜>' -}}
      {{- '<｜tool▁calls▁end｜>' if loop.last -}}
    {%- endfor -%}
    {{- '<｜end▁of▁sentence｜>' -}}
    {%- set turn.open = false -%}
  {%- elif message.role == 'tool' -%}
    {{- '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' -}}
    {%- set turn.open = true -%}
  {%- elif message.role != 'system' -%}
    {{- raise_exception('no format is known for the role ' + message.role) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not turn.open -%}
  {{- '<｜Assistant｜>' + ('<think>\n' if thinking else '') -}}
{%- endif -%}
"""


class ChatTemplate:
    """Messages in OpenAI's form: {"role", "content"}, an assistant's "tool_calls", what they gave in the role "tool".

    `tools=[{"type": "function", "function": {"name", "description", "parameters"}}, ...]` go where the template has a
    place for them, otherwise into the system prompt; `tool_format` is how calls are written (hetero/tool_format.py).
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer, *, seconds: float = SECONDS):
        self.source = source or DEEPSEEK
        self._tokenizer = tokenizer
        self._worker = Worker(seconds)
        named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        self._special = {name: tokenizer.token_text(id) for name, id in named.items() if id is not None}
        control = tokenizer.special_texts(CONTROL)
        tags = [text for text in tokenizer.special_texts(USER_DEFINED) if text[0] == "<" and text[-1] == ">"]
        self._guard_model, self._guard = Guard(control), Guard(control + tags)
        self._marks_thoughts = {OPEN, CLOSE} <= {*control, *tags}
        self.tool_format = format_of(tokenizer, self.source)

    @classmethod
    def from_gguf(cls, file: HasMetadata, tokenizer: Tokenizer) -> "ChatTemplate":
        source = file.metadata.get("tokenizer.chat_template")
        return cls(source if isinstance(source, str) else None, tokenizer)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        thinking: bool | None = None,
        **extra: Any,
    ) -> str:
        """The prompt as text, for a reader. For the model use `encode`: this text does not tell whose markup it is."""
        return self._render(messages, add_generation_prompt, thinking, extra).replace(MARK, "")

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        thinking: bool | None = None,
        **extra: Any,
    ) -> list[int]:
        """The prompt as token ids. Special tokens come from the template alone: a message that spells one out is
        encoded as plain text. (`<think>` within an assistant's message stays a token: the model wrote it.)"""
        return self._encoded(self._render(messages, add_generation_prompt, thinking, extra))

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        check: Callable[[str], None] = lambda text: None,
        /,  # what is called so among `extra` is the template's
        *,
        thinking: bool | None = None,
        **extra: Any,
    ) -> tuple[list[int], bool]:
        """`encode`'s ids, and whether the answer begins inside a `<think>`; rendered once. `check` may refuse the text,
        which is `render`'s, before it is tokenized."""
        marked = self._render(messages, True, thinking, extra)
        text = marked.replace(MARK, "")
        check(text)
        return self._encoded(marked), self.opens_thinking(text)

    def begun_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        check: Callable[[str], None] = lambda text: None,
        /,
        *,
        thinking: bool | None = None,
        **extra: Any,
    ) -> tuple[list[int], bool, str | None]:
        """As `prompt`, for an answer that goes on with the last message, an assistant's without calls. The third is the
        text of the answer that the prompt ends with, which is none where it ends in reasoning, and None where nothing
        was begun. TemplateError: the template does not show the message."""
        *before, last = messages
        begun = BegunAnswer.of(last, self._marks_thoughts)
        if begun.empty:
            return *self.prompt(before, check, thinking=thinking, **extra), None
        marked = self._with_reasoning(before, begun, extra) if begun.reasoning is not None else None
        if marked is None:
            if begun.text is None:
                found = "the last message is reasoning that is not over"
                raise TemplateError(found, "neither the chat template nor the vocabulary has a place for it", REMEDY)
            message = begun.message(thoughts=False)
            rendered = self._render([*before, message], False, thinking, extra, ends=True)
            marked = text_shown(rendered, self._guard_model.apply(begun.text))
        check(marked.replace(MARK, ""))
        return self._encoded(marked), begun.text is None, begun.text or ""

    def _with_reasoning(self, before: list[Mapping[str, Any]], begun: BegunAnswer, extra: dict[str, Any]) -> str | None:
        """As the template shows reasoning, or else as the model wrote it behind a prompt; None where it writes none."""
        if begun.reasoning:
            rendered = self._render([*before, begun.message()], False, True, extra, ends=True)
            shown = cut_behind(rendered, THOUGHT_END)
            if shown is not None:
                return shown if begun.text is None else text_shown(rendered, self._guard_model.apply(begun.text))
        opened = self._render(before, True, True, extra)
        if not self.opens_thinking(opened):
            if not self._marks_thoughts or opened.rstrip().endswith(CLOSE):
                return None
            bare = f"{OPEN}{CLOSE}" in self.source  # where it shows that no line breaks belong to the marks
            opened += OPEN if bare else f"{OPEN}\n"
        thought = opened + self._guard.apply(begun.reasoning or "")
        if begun.text is None:
            return thought
        closing = f"\n{CLOSE}\n\n" if opened.endswith("\n") else CLOSE
        return thought + closing + self._guard_model.apply(begun.text)

    def _encoded(self, marked: str) -> list[int]:
        ids = self._tokenizer.encode_marked(marked, MARK)
        bos = self._tokenizer.bos_id
        return [bos, *ids] if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos] else ids

    def opens_thinking(self, rendered: str) -> bool:
        """Whether the answer to this prompt begins inside a `<think>` that the template opened."""
        return rendered.rstrip().endswith("<think>")

    @cached_property
    def habits(self) -> Habits:
        """What the template does with tools; found by rendering a few messages, at the first use."""
        return habits_of(lambda messages, extra: self._worker.render(self.source, self._variables(messages, extra)))

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        prompt: bool,
        thinking: bool | None,
        extra: dict[str, Any],
        ends: bool = False,
    ) -> str:
        """`ends`: those of the last message are marked."""
        guarded = [(self._guard_model if m.get("role") == "assistant" else self._guard).apply(m) for m in messages]
        if ends:
            guarded[-1] = with_ends(guarded[-1])
        extra = self._guard.apply(extra)
        tools = extra.get("tools") or []
        if tools or any(message.get("tool_calls") or message.get("role") == "tool" for message in guarded):
            guarded = with_tools(guarded, tools, self.habits, self.tool_format)
        if thinking is not None:
            extra = {"thinking": thinking, "enable_thinking": thinking, **extra}
        return self._worker.render(self.source, self._variables(guarded, extra, prompt))

    def _variables(
        self, messages: Sequence[Mapping[str, Any]], extra: dict[str, Any], prompt: bool = True
    ) -> dict[str, Any]:
        return {**self._special, "messages": messages, "add_generation_prompt": prompt, **extra}


class Worker:
    """The process that renders (template_worker.py): started at the first use, killed when a template runs too long."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, source: str, variables: dict[str, Any]) -> str:
        try:
            request = json.dumps({"source": source, "variables": variables}).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateError(f"the messages cannot be written as JSON: {error}") from None
        with self._lock:
            reply = self._exchange(request)
        if "error" in reply:
            raise TemplateError(
                f"the chat template failed: {reply['error']}",
                remedy="check the messages and the order of their roles, or use a file with another chat template",
            )
        return reply["text"]

    def _exchange(self, request: bytes) -> dict[str, str]:
        process = self._process or self._start()
        self._process = None  # whatever interrupts this exchange, a late reply is never taken for the next one's
        timer = threading.Timer(self._seconds, process.kill)
        timer.start()
        try:
            line = ask(process, request, REPLY_LIMIT)
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            self._process = process
            return json.loads(line)
        if len(line) == REPLY_LIMIT:
            process.kill()
            return {"error": f"it writes more than {REPLY_LIMIT:,} bytes"}
        limit = f"it did not end within {self._seconds:g} seconds"
        return {"error": limit if process.wait() == -signal.SIGKILL else "it crashed its process"}

    def _start(self) -> subprocess.Popen[bytes]:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("template_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=inherited | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is for the program, not for its worker
        )
        weakref.finalize(self, stop, process)
        return process


def ask(process: subprocess.Popen[bytes], request: bytes, limit: int) -> bytes:
    """One line for one line; what there is of it when the process dies first, and `limit` bytes at most."""
    assert process.stdin and process.stdout, "both are pipes"
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(request)
        process.stdin.flush()
    return process.stdout.readline(limit)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
