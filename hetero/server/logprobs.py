"""Tokens of an answer with their logprobs, as OpenAI's clients read them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hetero.request import Generated

if TYPE_CHECKING:
    from hetero.tokenizer import Tokenizer


def shown_tokens(tokenizer: "Tokenizer", tokens: Sequence[Generated]) -> list[dict[str, Any]]:
    """Text, bytes and logprob of each, and of its alternatives."""

    def named(id: int, logprob: float | None) -> dict[str, Any]:
        text = tokenizer.token_bytes(id)
        return {"token": text.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(text)}

    return [named(one.id, one.logprob) | {"top_logprobs": [named(*other) for other in one.top]} for one in tokens]


def finite(logprob: float | None) -> float | None:
    """JSON has no infinity; OpenAI writes this for what is all but impossible."""
    return None if logprob is None else max(logprob, -9999.0)
