"""The endpoints that generate: one for each interface."""

import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from hetero.server.ask import Ask
from hetero.server.call import A, Call, document, new_id
from hetero.server.chat_answer import ChatAnswer
from hetero.server.chat_form import ChatForm
from hetero.server.chunked_answer import Wanted
from hetero.server.completion_answer import CompletionAnswer
from hetero.server.completion_form import CompletionForm
from hetero.server.exchange import Exchange
from hetero.server.messages_answer import MessagesAnswer
from hetero.server.messages_form import CountForm, MessagesForm
from hetero.server.responses_answer import ResponsesAnswer
from hetero.server.responses_form import InputTokensForm, ResponsesForm, echoed
from hetero.server.responses_tools import namespaces
from hetero.server.sse import Answer
from hetero.server.stream_fields import StreamOptions


def wanted(ask: Ask, options: StreamOptions | None) -> Wanted:
    return Wanted(bool(options and options.include_usage), ask.progress, ask.logprobs is not None)


async def chat_answer(call: Call, form: ChatForm, ask: Ask, exchange: Exchange) -> Answer:
    head = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": call.service.name}
    return ChatAnswer(exchange, call.service.loaded.tokenizer, head, wanted(ask, form.stream_options))


async def completion_answer(call: Call, form: CompletionForm, ask: Ask, exchange: Exchange) -> Answer:
    tokenizer, echo = call.service.loaded.tokenizer, [""] * len(ask.texts)
    if form.echo:
        texts = ask.texts
        echo = await call.apart(lambda: [one if isinstance(one, str) else tokenizer.decode(one) for one in texts])
    echo = [text for text in echo for _ in range(ask.choices)]
    head = {"id": new_id("cmpl-"), "created": int(time.time()), "model": call.service.name}
    return CompletionAnswer(exchange, tokenizer, head, wanted(ask, form.stream_options), echo)


async def responses_answer(call: Call, form: ResponsesForm, ask: Ask, exchange: Exchange) -> Answer:
    head = {"id": new_id("resp_"), "created_at": int(time.time()), "model": call.service.name}
    head |= echoed(form, ask.sampling)
    spaces, tokenizer = namespaces(form.tools or []), call.service.loaded.tokenizer
    return ResponsesAnswer(exchange, tokenizer, head, spaces, logprobs=ask.logprobs is not None)


async def messages_answer(call: Call, form: MessagesForm, ask: Ask, exchange: Exchange) -> Answer:
    head = {"id": new_id("msg_"), "model": call.service.name}
    hidden = form.thinking is not None and form.thinking.display == "omitted"
    return MessagesAnswer(exchange, head, progress=ask.progress, hidden=hidden)


def generates(
    kind: type[A], opened: Callable[[Call, A, Ask, Exchange], Awaitable[Answer]]
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint: from its form to an exchange, whose answer `opened` words as the interface does."""

    async def endpoint(request: Request) -> Response:
        call = Call(request)
        form, ask = await call.asked(kind)
        exchange = await call.begin(ask)
        try:
            answer = await opened(call, form, ask, exchange)
        except BaseException:  # nobody will listen
            exchange.close()
            raise
        return await call.answer(exchange, answer, form.stream)

    return endpoint


chat_completions = generates(ChatForm, chat_answer)
completions = generates(CompletionForm, completion_answer)
responses = generates(ResponsesForm, responses_answer)
messages = generates(MessagesForm, messages_answer)


async def count_tokens(request: Request) -> Response:
    call = Call(request)
    form = await call.form(CountForm)
    ids = await call.encoded(form.unsampled(call.service.settings.limits))
    return document({"input_tokens": len(ids)})


async def input_tokens(request: Request) -> Response:
    call = Call(request)
    form = await call.form(InputTokensForm)
    ids = await call.encoded(form.unsampled(call.service.settings.limits))
    return document({"object": "response.input_tokens", "input_tokens": len(ids)})
