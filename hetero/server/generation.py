"""The endpoints that generate: one for each interface."""

import time

from starlette.requests import Request
from starlette.responses import Response

from hetero.server.ask import Ask
from hetero.server.call import Call, document, new_id
from hetero.server.chat_answer import ChatAnswer
from hetero.server.chat_form import ChatForm
from hetero.server.chunked_answer import Wanted
from hetero.server.completion_answer import CompletionAnswer
from hetero.server.completion_form import CompletionForm
from hetero.server.messages_answer import MessagesAnswer
from hetero.server.messages_form import CountForm, MessagesForm
from hetero.server.responses_answer import ResponsesAnswer
from hetero.server.responses_form import InputTokensForm, ResponsesForm, echoed
from hetero.server.responses_tools import namespaces
from hetero.server.stream_fields import StreamOptions


def wanted(ask: Ask, options: StreamOptions | None) -> Wanted:
    return Wanted(bool(options and options.include_usage), ask.progress, ask.logprobs is not None)


async def chat_completions(request: Request) -> Response:
    call = Call(request)
    form = await call.form(ChatForm)
    ask, exchange = await call.begin(form)
    head = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": call.service.name}
    answer = ChatAnswer(exchange, call.service.loaded.tokenizer, head, wanted(ask, form.stream_options))
    return await call.answer(exchange, answer, form.stream)


async def completions(request: Request) -> Response:
    call = Call(request)
    form = await call.form(CompletionForm)
    ask, exchange = await call.begin(form)
    tokenizer = call.service.loaded.tokenizer
    texts = [text if isinstance(text, str) else tokenizer.decode(text) for text in ask.texts if form.echo]
    echo = [text for text in texts or [""] * len(ask.texts) for _ in range(ask.choices)]
    head = {"id": new_id("cmpl-"), "created": int(time.time()), "model": call.service.name}
    answer = CompletionAnswer(exchange, tokenizer, head, wanted(ask, form.stream_options), echo)
    return await call.answer(exchange, answer, form.stream)


async def responses(request: Request) -> Response:
    call = Call(request)
    form = await call.form(ResponsesForm)
    ask, exchange = await call.begin(form)
    head = {"id": new_id("resp_"), "created_at": int(time.time()), "model": call.service.name}
    head |= echoed(form, ask.sampling)
    spaces, tokenizer = namespaces(form.tools or []), call.service.loaded.tokenizer
    answer = ResponsesAnswer(exchange, tokenizer, head, spaces, logprobs=ask.logprobs is not None)
    return await call.answer(exchange, answer, form.stream)


async def messages(request: Request) -> Response:
    call = Call(request)
    form = await call.form(MessagesForm)
    ask, exchange = await call.begin(form)
    head = {"id": new_id("msg_"), "model": call.service.name}
    hidden = form.thinking is not None and form.thinking.display == "omitted"
    answer = MessagesAnswer(exchange, head, progress=ask.progress, hidden=hidden)
    return await call.answer(exchange, answer, form.stream)


async def count_tokens(request: Request) -> Response:
    call = Call(request)
    form = await call.form(CountForm)
    ids = await call.service.encoded(form.unsampled(call.service.settings.limits))
    return document({"input_tokens": len(ids)})


async def input_tokens(request: Request) -> Response:
    call = Call(request)
    form = await call.form(InputTokensForm)
    ids = await call.service.encoded(form.unsampled(call.service.settings.limits))
    return document({"object": "response.input_tokens", "input_tokens": len(ids)})
