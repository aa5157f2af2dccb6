"""Grammars that an answer is held to while it is sampled: JSON of a schema, calls of the tools there are.

By llguidance (https://github.com/guidance-ai/llguidance): it says of every token of the vocabulary whether the text may
go on with it. A grammar is compiled once for a request, where the request is read, within the bounds below; masks are
computed in the scheduler's thread. Free text, the reasoning or an answer before its calls, passes by the grammar and
costs nothing.

Departures from JSON Schema are those of llguidance (its docs/json_schema.md): properties come in the order in which the
schema lists them, and the keys of additionalProperties may repeat.
"""

import time
from collections.abc import Callable
from typing import Any

import llguidance
import numpy as np

from hetero.continuation import Constraint, bits
from hetero.errors import RequestError, UnsupportedError
from hetero.generate import Prompt
from hetero.reasoning_budget import one_token, thinking_ids
from hetero.server.grammar import ANY_OBJECT, Calls, Schema, grammar_text, json_rule, schemas_of
from hetero.server.schema_limits import BYTES, REMEDY, check_schema
from hetero.tokenizer import USER_DEFINED, Tokenizer
from hetero.tool_format import check_names

FIRST_MASK_SECONDS = 0.5  # a grammar whose first mask takes longer is refused
LIMITS: dict[str, Any] = {  # what llguidance may spend, about 10 ms for the mask of one token
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 50_000,
    "max_lexer_states": 60_000,  # 1 to 2 kB each
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class Vocabulary:
    """What llguidance knows of a model's tokens; made once (1.3 s for 129,280), shared by all requests."""

    def __init__(self, tokenizer: Tokenizer):
        if not tokenizer.stop_ids:
            raise UnsupportedError("the model has no token that ends an answer", "a grammar needs one")
        self.tokenizer, self.size = tokenizer, tokenizer.vocab_size
        self.eos_token_id, self.bos_token_id = min(tokenizer.stop_ids), tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(id) for id in range(self.size)]
        tags = {text for text in tokenizer.special_texts(USER_DEFINED) if text[0] == "<" and text[-1] == ">"}
        self.special_token_ids = [
            id
            for id, text in enumerate(self.tokens)
            if tokenizer.is_special(id)
            or (text[:1] == b"<" and text.decode(errors="replace") in tags)
            or (text[:4] == b"[PAD" and text == b"[PAD%d]" % id)
        ]
        wrapper = llguidance.TokenizerWrapper(self)
        self.known = llguidance.LLTokenizer(wrapper, eos_token=sorted(tokenizer.stop_ids))
        self.limits = llguidance.LLParserLimits(**LIMITS)

    def __call__(self, text: bytes) -> list[int]:
        return self.tokenizer.encode(text.decode(errors="replace"))

    def token(self, text: str) -> int | None:
        """The id, where this text is one special token."""
        return one_token(self.tokenizer, text)


class Grammar:
    """A Constraint by one compiled grammar, from its first token on."""

    def __init__(self, matcher: llguidance.LLMatcher, size: int):
        self._matcher = matcher
        self._mask = np.zeros(-(-size // 32), np.dtype("<u4"))

    def mask(self) -> np.ndarray | None:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        return self._mask

    def accept(self, id: int) -> None:
        self._matcher.consume_token(id)
        self._check()

    @property
    def ended(self) -> bool:
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(
                f"the answer cannot be held to its grammar: {reason_of(self._matcher.get_error())}",
                "there is a bound on what one token may cost",
                REMEDY,
            )


class Gated:
    """Anything, until the token `gate` comes; then `inner`. `before`: the mask until then."""

    def __init__(self, gate: int, inner: Constraint, before: np.ndarray | None = None):
        self._gate, self._inner, self._before = gate, inner, before
        self._open = False

    def mask(self) -> np.ndarray | None:
        return self._inner.mask() if self._open else self._before

    def accept(self, id: int) -> None:
        if self._open:
            self._inner.accept(id)
        self._open = self._open or id == self._gate

    @property
    def ended(self) -> bool:
        return self._open and self._inner.ended


class MayThink:
    """`answer`, unless the first token is `opening`: then `thinking`, which leads to the same answer."""

    def __init__(self, opening: int, thinking: Constraint, answer: Constraint):
        self._opening, self._thinking, self._answer = opening, thinking, answer
        self._chosen: Constraint | None = None

    def mask(self) -> np.ndarray | None:
        mask = (self._chosen or self._answer).mask()
        if self._chosen is None and mask is not None:
            mask = mask.copy()
            mask[self._opening // 32] |= np.uint32(1 << self._opening % 32)
        return mask

    def accept(self, id: int) -> None:
        if self._chosen is None:
            self._chosen = self._thinking if id == self._opening else self._answer
        self._chosen.accept(id)

    @property
    def ended(self) -> bool:
        return self._chosen is not None and self._chosen.ended


def constraint_for(
    vocabulary: Vocabulary, prompt: Prompt, *, schema: Schema | None = None, calls: Calls | None = None
) -> Callable[[], Constraint] | None:
    """Makes the constraint of one answer, as often as there are answers to this prompt; None: nothing is asked for.

    The reasoning before the answer is free, where the prompt began it or the model may. With schema and calls, the
    answer is either, unless calls are required. Nothing comes after a document or a section of calls. A document that
    the prompt begins is gone on with. RequestError: a schema that cannot be enforced, that is beyond the bounds, or
    that has no document with this begin.
    """
    if schema is None and calls is None:
        return None
    bare = calls is not None and calls.format.marked and not calls.required and schema is None
    opening, closing = thinking_ids(vocabulary.tokenizer, prompt)
    matcher = compiled(vocabulary, schema, calls, bare, after_thinking=closing is not None)
    if schema is not None and prompt.begun:
        begin(matcher, vocabulary.tokenizer.encode(prompt.begun))
    stops = bits(vocabulary.tokenizer.stop_ids, vocabulary.size, others=True)
    gate = calls.format.ids[0] if bare and calls else None

    def make() -> Constraint:
        answer: Constraint = Grammar(matcher.deep_copy(), vocabulary.size)
        if gate is not None:
            answer = Gated(gate, answer)
        if closing is None:
            return answer
        thinking = Gated(closing, answer, None if gate is not None else stops)
        return thinking if opening is None else MayThink(opening, thinking, answer)

    return make


def begin(matcher: llguidance.LLMatcher, ids: list[int]) -> None:
    """What is there already. Its tokens are not those that the model would have taken: only their text counts."""
    if matcher.validate_tokens(ids) < len(ids) or not matcher.consume_tokens(ids):
        found, limit = "the last message begins no document of the schema", "the answer goes on with its text"
        raise RequestError(found, limit, "begin it otherwise, or leave the schema out")


def compiled(
    vocabulary: Vocabulary, schema: Schema | None, calls: Calls | None, after_gate: bool, after_thinking: bool
) -> llguidance.LLMatcher:
    named = [(f"the schema of {what}", one) for what, one in schemas_of(schema, calls)]
    if (size := sum(check_schema(one.document, what) for what, one in named)) > BYTES:
        raise RequestError(f"the JSON schemas have {size:,} bytes", f"at most {BYTES:,} in one request", REMEDY)
    if calls is not None:
        check_names(calls.tools)
    rules = [json_rule(one) for _, one in named]
    matcher = matcher_of(vocabulary, grammar_text(rules, schema, calls, after_gate, after_thinking))
    if matcher.is_error():  # which of them, and can it be had with less?
        for at, (what, one) in enumerate(named):
            alone = matcher_of(vocabulary, f"%llguidance {{}}\nstart: {rules[at]}\n")
            if alone.is_error() and (one.strict or what == "the schema of the answer"):
                raise refused(what, alone)
            if alone.is_error():
                rules[at] = json_rule(ANY_OBJECT)
        matcher = matcher_of(vocabulary, grammar_text(rules, schema, calls, after_gate, after_thinking))
    if matcher.is_error():
        raise refused("the schemas together", matcher)
    started = time.perf_counter()
    matcher.deep_copy().compute_bitmask()
    if time.perf_counter() - started > FIRST_MASK_SECONDS:
        raise RequestError("the JSON schema takes too long to enforce", f"{FIRST_MASK_SECONDS} s at a token", REMEDY)
    return matcher


def matcher_of(vocabulary: Vocabulary, grammar: str) -> llguidance.LLMatcher:
    return llguidance.LLMatcher(vocabulary.known, grammar, log_level=0, limits=vocabulary.limits)


def refused(what: str, matcher: llguidance.LLMatcher) -> RequestError:
    return RequestError(
        f"{what} cannot be enforced: {reason_of(matcher.get_error())}",
        "what llguidance compiles can",
        "leave this keyword out, or strict where it is said",
    )


def reason_of(error: str) -> str:
    """The sentence in llguidance's message, which may go on with the grammar."""
    first = error.strip().partition("\n")[0]
    return first.partition("failed to compile JSON schema: ")[2][:300] or first[:300]
