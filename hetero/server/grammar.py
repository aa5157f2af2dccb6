"""The text of a grammar: what an answer may be, in llguidance's form of Lark (its docs/syntax.md)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetero.server.closed_objects import closed
from hetero.tool_format import ToolFormat

# Once at most between two parts of a document: a space, or a line break and indentation. What JSON allows has no end,
# and a greedy model may write it until max_tokens; without any, a model is led away from what it would write.
WHITESPACE = r"(?:\x20|\r?\n[\x20\t]{0,40})"


@dataclass(frozen=True)
class Schema:
    """The answer is a JSON document of this schema, its objects closed as closed_objects.py says.

    Not `strict`: keywords that cannot be enforced are left out.
    """

    document: Mapping[str, Any] | bool
    strict: bool = False


ANY_OBJECT = Schema({"type": "object"})


@dataclass(frozen=True)
class Calls:
    """Calls of `tools`, in OpenAI's form {"function": {"name", "parameters", "strict"}}, as `format` writes them.

    `required`: there must be one, and nothing else may come; otherwise the model decides, after any text. `only`: those
    that may be called; None: all. A tool that is not strict gets what of its schema can be enforced.
    """

    format: ToolFormat
    tools: Sequence[Mapping[str, Any]]
    required: bool = False
    only: tuple[str, ...] | None = None
    parallel: bool = True


def schemas_of(schema: Schema | None, calls: Calls | None) -> list[tuple[str, Schema]]:
    """Those that tool calls are held to, then that of the answer."""
    found = []
    for tool in callable_tools(calls) if calls is not None else ():
        function = tool["function"]
        parameters = function.get("parameters") or ANY_OBJECT.document
        found.append((f"tool {function['name']}", Schema(parameters, bool(function.get("strict")))))
    if schema is not None and not (calls is not None and calls.required):
        found.append(("the answer", schema))
    return found


def callable_tools(calls: Calls) -> list[Mapping[str, Any]]:
    return [tool for tool in calls.tools if calls.only is None or tool["function"]["name"] in calls.only]


def json_rule(schema: Schema) -> str:
    found = closed(schema.document)
    document = {} if found is True else {"enum": []} if found is False else dict(found)
    options = {"whitespace_pattern": WHITESPACE, "lenient": not schema.strict}
    return "%json " + json.dumps(document | {"x-guidance": options})


def grammar_text(
    rules: Sequence[str], schema: Schema | None, calls: Calls | None, after_gate: bool, after_thinking: bool
) -> str:
    """`rules`: of the schemas, as `schemas_of` lists them. `after_gate`: the begin of the section has come already.
    `after_thinking`: reasoning may come before, at the end of which models write line breaks."""
    lines = ["%llguidance {}"]
    if calls is None:
        lines += ["start: WS? answer"]
    elif calls.required:
        lines += ["start: BREAK? begin section" if after_thinking else "start: begin section"]
    elif schema is not None:
        lines += ["start: WS? (answer | begin section)"]
    elif after_gate:
        lines += ["start: section"]
    else:
        lines += [
            "start: TEXT | head section",
            "TEXT: /(.|\\n)*/",
            f"head[lazy]: TEXT {quoted(calls.format.calls_begin)}",
        ]
    lines += ["WS: /[ \\n]{1,8}/", "BREAK: /\\n{1,2}/"]
    if calls is not None:
        tools = callable_tools(calls)
        lines += section_rules(calls, [tool["function"]["name"] for tool in tools])
        lines += [f"arguments_{at}: {rules[at]}" for at in range(len(tools))]
    if schema is not None and not (calls is not None and calls.required):
        lines += [f"answer: {rules[-1]}"]
    return "\n".join(lines) + "\n"


def section_rules(calls: Calls, names: Sequence[str]) -> list[str]:
    format = calls.format
    marks = [f"<[{id}]>" for id in format.ids] or [quoted(mark) for mark in format.marks]
    begin, end, call_begin, call_end, separator = marks
    more = f"({quoted(format.between)} call)*" if format.between else "call*"
    lines = [f"begin: {begin}", f"section: call {more if calls.parallel else ''} {end}"]
    lines += ["call: " + " | ".join(f"call_{at}" for at in range(len(names)))]
    for at, name in enumerate(names):
        arguments = f"arguments_{at}"
        if format.style == "fenced":
            opening, closing = quoted(f"{name}\n```json\n"), quoted("\n```")
            inner = f'"function" {separator} {opening} {arguments} {closing}'
        elif format.style == "kimi":
            inner = f"{quoted(f'functions.{name}:')} /[0-9]{{1,3}}/ {separator} {arguments}"
        else:
            inner = f"{quoted(name)} {separator} {arguments}"
        lines.append(f"call_{at}: {call_begin} {inner} {call_end}")
    return lines


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
