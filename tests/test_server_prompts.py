"""From what is asked to token ids: what cannot fit is refused before it is tokenized."""

from collections.abc import Iterator
from typing import Any

import pytest

from hetero import demo
from hetero.gguf import open_gguf
from hetero.sampler import Sampling
from hetero.server.ask import Ask
from hetero.server.loaded import Loaded
from hetero.server.prompts import prepare
from hetero.server.refusal import Refusal
from hetero.template import ChatTemplate
from hetero.tokenizer import Tokenizer

CONTEXT = 100


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    scheduler: Any = None  # nothing is begun
    with open_gguf(demo.path()) as file:
        tokenizer = Tokenizer.from_gguf(file)
        yield Loaded(scheduler, tokenizer, ChatTemplate.from_gguf(file, tokenizer), CONTEXT, 1, "demo")


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_far_too_long_messages_are_not_tokenized(role: str, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = ({"role": role, "content": "word " * 10_000}, {"role": "user", "content": "Hi"})
    refused_at_once(Ask(Sampling(), messages), loaded, monkeypatch)


def test_far_too_long_texts_are_not_tokenized(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    refused_at_once(Ask(Sampling(), texts=("word " * 10_000,)), loaded, monkeypatch)


def refused_at_once(ask: Ask, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*of: Any, **how: Any) -> None:
        raise AssertionError("it was tokenized")

    for name in ("encode", "encode_marked"):
        monkeypatch.setattr(loaded.tokenizer, name, encode)
    with pytest.raises(Refusal, match=r"at least .* tokens; the context holds 100") as refused:
        prepare(ask, loaded)
    assert refused.value.code == "context_length_exceeded"


def test_what_is_a_little_too_long_is_counted(loaded: Loaded) -> None:
    with pytest.raises(Refusal, match=r"the prompt has [0-9,]+ tokens") as refused:
        prepare(Ask(Sampling(), texts=("Once upon a time. " * 50,)), loaded)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("text", ["", " " * 500, "a", "Once upon a time. " * 20, "日本語\n\n" * 9])
def test_least_tokens_are_never_more_than_there_are(text: str, loaded: Loaded) -> None:
    assert loaded.tokenizer.least_tokens(text) <= len(loaded.tokenizer.encode(text))


@pytest.mark.parametrize(
    ("ask", "param"),
    [
        (Ask(Sampling(logit_bias={5: 1.0, 4096: -1.0}), texts=("Once",)), "logit_bias"),
        (Ask(Sampling(), texts=((1, 4096),), source="prompt"), "prompt"),
    ],
)
def test_tokens_that_are_not_there_are_told_of_their_field(ask: Ask, param: str, loaded: Loaded) -> None:
    said = f"{param} has the token id 4096; the vocabulary has the ids 0 to 4095"
    with pytest.raises(Refusal, match=said) as refused:
        prepare(ask, loaded)
    assert refused.value.param == param
