"""Forms of requests, the smallest that each takes, and the types of parts that the real clients know."""

import typing
from typing import Any

import pytest

from hetero.sampler import Sampling
from hetero.server.ask import Ask
from hetero.server.chat_form import ChatForm
from hetero.server.completion_form import CompletionForm
from hetero.server.fields import Form, check_refused
from hetero.server.messages_form import CountForm, MessagesForm
from hetero.server.refusal import Refusal
from hetero.server.responses_form import InputTokensForm, ResponsesForm
from hetero.server.settings import Limits

COUNTS = (InputTokensForm, CountForm)  # what these read makes a prompt, whose tokens are counted
SAID: dict[type[Form], dict[str, Any]] = {
    ChatForm: {"messages": [{"role": "user", "content": "Hi"}]},
    CompletionForm: {"prompt": "Once"},
    ResponsesForm: {"input": "Hi"},
    MessagesForm: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
    InputTokensForm: {"input": "Hi"},
    CountForm: {"messages": [{"role": "user", "content": "Hi"}]},
}


def ask(kind: Any, limits: Limits | None = None, **fields: Any) -> Ask:
    form = kind.read(SAID[kind] | fields)
    check_refused(form)
    return form.unsampled(limits or Limits()) if kind in COUNTS else form.ask(Sampling(), limits or Limits())


def refused(kind: type[Form], limits: Limits | None = None, **fields: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        ask(kind, limits, **fields)
    assert caught.value.status == 400
    return caught.value


def kinds(union: Any) -> set[str]:
    """The types that a real client knows of tools, items or parts."""
    known = [one for one in typing.get_args(union) if hasattr(one, "__total__")]
    hints = [typing.get_type_hints(one).get("type") for one in known]
    return {kind for hint in hints for kind in ([hint] if isinstance(hint, str) else literals(hint))} - {None}


def literals(hint: Any) -> list[Any]:
    inner = typing.get_args(hint)
    return [found for one in inner for found in ([one] if isinstance(one, str) else literals(one))]
