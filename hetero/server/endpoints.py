"""The endpoints that generate nothing: what is served, how it is, and the tokenizer."""

import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from hetero.sampler import Sampling
from hetero.server.ask import Ask
from hetero.server.call import Call, document
from hetero.server.chat_messages import template_messages, template_variables
from hetero.server.loaded import Loaded
from hetero.server.metrics import CONTENT_TYPE, Metrics
from hetero.server.openapi import openapi
from hetero.server.panel import panel
from hetero.server.prompts import check_length
from hetero.server.refusal import bad
from hetero.server.service import Service
from hetero.server.token_form import DetokenizeForm, TokenizeForm


async def models(request: Request) -> Response:
    service = Call(request).service
    one = described(service)
    page = {"first_id": service.name, "last_id": service.name, "has_more": False}  # as Anthropic's clients read it
    return document({"object": "list", "data": [one], **page})


async def model(request: Request) -> Response:
    service = Call(request).service
    if not request.path_params["name"]:  # the list's path with a slash
        raise HTTPException(404)
    service.check_model(request.path_params["name"])
    return document(described(service))


async def health(request: Request) -> Response:
    """200 when a request would be taken, 503 while the model is loaded, the server drains, or when the model failed."""
    service: Service = request.app.state.service
    found: dict[str, Any] = {"status": service.health}
    if service.state == "loading":
        found |= service.stage
    return document(found, 200 if service.health == "ready" else 503)


async def tokenize(request: Request) -> Response:
    call = Call(request)
    form = await call.form(TokenizeForm)
    if (form.content is None) == (form.messages is None):
        raise bad(
            "content and messages" if form.content is not None else "nothing to tokenize", "one of content, messages"
        )
    loaded, content = call.service.loaded, form.content
    if form.messages is not None:
        messages = template_messages(form.messages, call.service.settings.limits)
        template = template_variables(form.chat_template_kwargs or {})
        ask = Ask(Sampling(), messages, form.begun(form.messages), template=template)
        ids = await call.encoded(ask)
    else:
        check_length(content or "", "content", loaded)
        special, bos = bool(form.parse_special), bool(form.add_special)
        ids = await call.apart(lambda: loaded.tokenizer.encode(content or "", special=special, bos=bos))
    return await call.apart(lambda: tokenized(ids, loaded, bool(form.with_pieces)))


def tokenized(ids: list[int], loaded: Loaded, with_pieces: bool) -> Response:
    tokens = [{"id": id, "piece": loaded.tokenizer.decode([id])} for id in ids] if with_pieces else ids
    return document({"tokens": tokens, "count": len(ids), "max_model_len": loaded.context})


async def detokenize(request: Request) -> Response:
    call = Call(request)
    form = await call.form(DetokenizeForm)
    tokenizer = call.service.loaded.tokenizer
    return await call.apart(lambda: document({"content": tokenizer.decode(form.tokens)}))


async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    collected: Metrics = request.app.state.metrics
    return Response(collected.text(service), media_type=CONTENT_TYPE, headers={"cache-control": "no-store"})


async def show_panel(request: Request) -> Response:
    return document(panel(request.app.state.service))


async def show_openapi(request: Request) -> Response:
    return document(openapi())


def described(service: Service) -> dict[str, Any]:
    """As OpenAI's and as Anthropic's clients read it."""
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(service.created))
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "hetero",
        "type": "model",
        "display_name": service.title,
        "created_at": made,
        "lifecycle": "active",
        "context_length": service.context,
        "max_input_tokens": service.context,
        "max_tokens": service.context,
    }
