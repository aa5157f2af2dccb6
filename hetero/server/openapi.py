"""The OpenAPI document: made of the forms that read the requests, so that it cannot say anything else."""

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from hetero import __version__
from hetero.server.chat_form import ChatForm
from hetero.server.completion_form import CompletionForm
from hetero.server.fields import Form
from hetero.server.messages_form import CountForm, MessagesForm
from hetero.server.responses_form import InputTokensForm, ResponsesForm
from hetero.server.token_form import DetokenizeForm, TokenizeForm

REFERENCE = "#/components/schemas/{model}"
POSTS: dict[str, tuple[type[Form], str, bool]] = {  # form, summary, whether it can stream
    "/v1/chat/completions": (ChatForm, "A chat's next message", True),
    "/v1/completions": (CompletionForm, "Text to go on with", True),
    "/v1/responses": (ResponsesForm, "A response, as OpenAI's newer interface has it", True),
    "/v1/responses/input_tokens": (InputTokensForm, "How many tokens a response's prompt has", False),
    "/v1/messages": (MessagesForm, "A message, as Anthropic's interface has it", True),
    "/v1/messages/count_tokens": (CountForm, "How many tokens a message's prompt has", False),
    "/tokenize": (TokenizeForm, "Text or messages to token ids", False),
    "/detokenize": (DetokenizeForm, "Token ids to text", False),
}
GETS = {
    "/v1/models": "The one model that is served",
    "/v1/models/{name}": "The model of this name",
    "/health": "loading, draining and failed with 503, ready with 200",
    "/metrics": "Prometheus' text format",
    "/panel": "What the page shows: model, plan, running sequences",
    "/openapi.json": "This document",
}
FAILURES = {
    "400": "wrong, not implemented, or longer than the context",
    "401": "no key, or a wrong one",
    "403": "another Host, or a page of another origin",
    "404": "no such model",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "415": "the body is not JSON",
    "429": "too many wait; Retry-After says when to try again",
    "500": "the model or the server failed on this request",
    "503": "loading, or draining",
}


@cache
def openapi() -> dict[str, Any]:
    forms = [(form, "validation") for form, _, _ in POSTS.values()]
    _, definitions = models_json_schema(forms, ref_template=REFERENCE)  # type: ignore[arg-type]  # a literal in a list
    paths: dict[str, Any] = {path: {"post": post(*about)} for path, about in POSTS.items()}
    paths |= {path: {"get": get(path, summary)} for path, summary in GETS.items()}
    schemas = definitions["$defs"] | {"Error": {"type": "object"}}
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "hetero", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": keys},
        "security": [{}, {"bearer": []}, {"x-api-key": []}],
    }


def post(form: type[Form], summary: str, streams: bool) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    if streams:
        content["text/event-stream"] = {}  # events of several shapes, which no schema of a text tells
    body = {"application/json": {"schema": {"$ref": REFERENCE.format(model=form.__name__)}}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "done", "content": content}} | failures(),
    }


def get(path: str, summary: str) -> dict[str, Any]:
    kind = "text/plain" if path == "/metrics" else "application/json"
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {kind: {}}}} | failures(),
    }
    if "{name}" in path:
        found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return found


def failures() -> dict[str, Any]:
    schema = {"schema": {"$ref": REFERENCE.format(model="Error")}}
    return {status: {"description": why, "content": {"application/json": schema}} for status, why in FAILURES.items()}
