"""Renders chat templates in a process of its own: one JSON request a line on stdin, one JSON reply a line on stdout.

A template is a program out of a downloaded file. jinja2's sandbox keeps it from the machine, but not from looping for
ever or from asking for a string of 100 GB; a process that may be killed, and whose memory is limited, does both.
Run as a script by template.py. It imports nothing of hetero, so it starts in about 0.1 s.
"""

import json
import resource
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_LIMIT = 1 << 30  # bytes of address space; a template of a known model needs 60 MB
OUTPUT_LIMIT = 1 << 24  # characters; longer than any context
ERROR_LIMIT = 1000  # characters, of what a template says itself


class GenerationTag(Extension):
    """{% generation %} marks, for training, what the assistant wrote; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """jinja2's own filter escapes HTML; templates are written for this one."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def make_environment() -> jinja2.Environment:
    """What transformers gives to a chat template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


@lru_cache(maxsize=4)
def compiled(source: str) -> jinja2.Template:
    return make_environment().from_string(source)


def render(source: str, variables: dict[str, Any]) -> str:
    pieces, length = [], 0
    for piece in compiled(source).generate(**variables):
        pieces.append(piece)
        length += len(piece)
        if length > OUTPUT_LIMIT:
            raise jinja2.TemplateError(f"it writes more than {OUTPUT_LIMIT:,} characters")
    return "".join(pieces)


def reply_to(request: dict[str, Any]) -> dict[str, str]:
    try:
        return {"text": render(request["source"], request["variables"])}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_LIMIT >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # whatever a template provokes is the template's failure
        return {"error": f"{type(error).__name__}: {error}"[:ERROR_LIMIT]}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(reply_to(json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
