"""Bodies that no honest client sends, or that ask for the impossible: of every endpoint, from a seed.

Each kind makes (path, body, statuses that an answer may have). Where several are allowed, the body may happen to be
one that can be met.
"""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

Made = tuple[str, bytes, frozenset[int]]

REFUSED = frozenset({400})
EITHER = frozenset({200, 400})
NAMED = frozenset({200, 400, 404})  # also where the name of the model was changed
LARGE = frozenset({200, 400, 413})

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
TOOL = {
    "name": "look_up",
    "description": "x",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
}
# Fields of each endpoint that mean something here, in a body that is answered with 200
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": TALK,
        "model": "demo",
        "max_tokens": 2,
        "temperature": 0,
        "top_p": 0.9,
        "stop": ["xyz"],
        "logit_bias": {"5": -1},
        "seed": 3,
        "n": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "presence_penalty": 0.5,
        "stream": False,
        "chat_template_kwargs": {},
    },
    "/v1/completions": {"prompt": "Once", "max_tokens": 2, "temperature": 0, "stop": "xyz", "logprobs": 1, "n": 1},
    "/v1/responses": {"input": "Who are you?", "max_output_tokens": 16, "temperature": 0, "instructions": "Be brief."},
    "/v1/responses/input_tokens": {"input": "Who are you?", "instructions": "Be brief."},
    "/v1/messages": {"messages": TALK[1:], "max_tokens": 2, "system": "Be brief.", "temperature": 0, "top_k": 3},
    "/v1/messages/count_tokens": {"messages": TALK[1:], "system": "Be brief."},
    "/tokenize": {"content": "Once upon a time", "with_pieces": True},
    "/detokenize": {"tokens": [5, 6, 7]},
}
JUNK: list[Any] = [
    *(None, True, False, "", "x", "1", 0, -1, 1, 0.5, 1e308, -(2**63), 2**64, [], [[]], [None], ["x", 1]),
    *(
        {},
        {"": ""},
        {"type": "text"},
        {"role": "user"},
        [{"role": "x"}],
        [{"type": "text", "text": 5}],
        "\x00",
        "\ud800",
    ),
]
NUMBERS = ["1e400", "-1e400", "1E+99999", "9" * 5000, "-" + "9" * 4000, "0." + "3" * 3000, "1e-400", "NaN", "Infinity"]
NUMBERS += ["-Infinity", "0x10", "1_000", "01", "+1", "1.", ".5", "1e", "--1", str(2**63), str(-(2**64)), "1e308"]
SPECIAL = "<｜begin▁of▁sentence｜><｜User｜><｜Assistant｜><｜end▁of▁sentence｜><｜tool▁calls▁begin｜><think></think>"
TEXTS = [
    "\ud800",
    "a\udfffb",
    "\x00",
    "\x00" * 300,
    "\u202e\u2066",
    "\U0010ffff",
    "\r\n\r\n",
    "e" + "\u0301" * 2000,
    SPECIAL,
]
TEXTS += [
    "{{ self.__class__ }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "data: [DONE]\n\n",
    "\x1b]0;x\x07",
    "' OR 1",
]


def written(document: Any) -> bytes:
    return json.dumps(document).encode()


def valid(rng: random.Random) -> tuple[str, dict[str, Any]]:
    path = rng.choice(list(VALID))
    return path, copy.deepcopy(VALID[path])


def truncated(rng: random.Random) -> Made:
    path, document = valid(rng)
    body = written(document)
    return path, body[: rng.randrange(1, len(body))], REFUSED


def not_an_object(rng: random.Random) -> Made:
    path, _ = valid(rng)
    return (
        path,
        rng.choice([b"", b" ", b"null", b"[]", b'"x"', b"5", b"{}{}", b"{,}", b"\xef\xbb\xbf{}", b"{'a':1}"]),
        REFUSED,
    )


def wrong_type(rng: random.Random) -> Made:
    path, document = valid(rng)
    document[rng.choice(list(document))] = rng.choice(JUNK)
    return path, written(bounded(path, document)), NAMED


def wrong_type_inside(rng: random.Random) -> Made:
    """Of a message."""
    path, document = rng.choice([(path, one) for path, one in VALID.items() if "messages" in one])
    document = copy.deepcopy(document)
    document["messages"][-1][rng.choice(["role", "content", "tool_calls", "name", "x"])] = rng.choice(JUNK)
    return path, written(document), NAMED


def huge_number(rng: random.Random) -> Made:
    path, document = valid(rng)
    name = rng.choice([*document, "unknown"])
    document[name] = "@@"
    return path, written(document).replace(b'"@@"', rng.choice(NUMBERS).encode()), NAMED


def deep(rng: random.Random) -> Made:
    path, document = valid(rng)
    depth = rng.choice([100, 1000, 100_000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"":', b"}]")])
    nest = opening * depth + b"1" + closing * depth
    if rng.random() < 0.3:
        return path, nest, REFUSED
    if rng.random() < 0.3:
        return path, opening * depth, REFUSED
    document[rng.choice([*document, "unknown"])] = "@@"
    return path, written(document).replace(b'"@@"', nest), REFUSED


def not_utf8(rng: random.Random) -> Made:
    path, document = valid(rng)
    body = bytearray(written(document))
    at = rng.randrange(len(body))
    body[at:at] = rng.choice([b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80"])
    return path, bytes(body), REFUSED


def odd_text(rng: random.Random) -> Made:
    """Lone surrogates, NUL, text of special tokens and templates; as a key, too."""
    path, document = valid(rng)
    text = rng.choice(TEXTS)
    if rng.random() < 0.2:
        document[text] = text
    elif "messages" in document:
        document["messages"][-1]["content"] = text
    else:
        document[next(iter(document))] = text
    return path, written(document), EITHER


def raw_control(rng: random.Random) -> Made:
    path, document = valid(rng)
    control = bytes([rng.choice([0, 1, 8, 10, 27, 31])])
    return path, written(document | {"x": "@@"}).replace(b"@@", control), REFUSED


def twice(rng: random.Random) -> Made:
    path, document = valid(rng)
    name = rng.choice(list(document))
    second = written({name: rng.choice([document[name], *JUNK])})[1:]
    return path, written(document)[:-1] + b", " + second, NAMED


def long_text(rng: random.Random) -> Made:
    path, document = valid(rng)
    size = rng.choice([100_000, 1_000_000, 4_000_000, 9_000_000])
    text = rng.choice(["a", "word ", "é", "日本", "\n", " ", "a1!", "\\", "💥"])
    text *= size // len(text.encode())
    if "messages" in document:
        document["messages"][-1]["content"] = text
    else:
        document[next(iter(document))] = text
    return path, json.dumps(document, ensure_ascii=False).encode(), LARGE


def too_many(rng: random.Random) -> Made:
    path, document = "/v1/chat/completions", copy.deepcopy(VALID["/v1/chat/completions"])
    count = rng.choice([513, 5000])
    more: list[dict[str, Any]] = [
        {"stop": [f"s{at}" for at in range(count)]},
        {"stop": ["x" * 100_000]},
        {"messages": TALK * count * 20},
        {"logit_bias": {str(at): 1 for at in range(count * 10)}},
        {"tools": [{"type": "function", "function": TOOL | {"name": f"f{at}"}} for at in range(count)]},
        {"n": count},
        {"top_logprobs": count},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * count}] * 5},
        {f"unknown{at}": at for at in range(count)},
    ]
    body = written(document | rng.choice(more))
    return path, body, EITHER


def many_values(rng: random.Random) -> Made:
    """Small ones, each of them wrong: to say so of each would take a minute. More than are parsed, or almost."""
    path, name = rng.choice(
        [
            *(("/v1/completions", "prompt"), ("/v1/completions", "stop"), ("/detokenize", "tokens")),
            *(("/v1/chat/completions", "messages"), ("/v1/chat/completions", "tools"), ("/v1/messages", "messages")),
            *(("/v1/responses", "input"), ("/v1/chat/completions", "stop")),
        ]
    )
    one, count = rng.choice(["{}", "[]", "true", "-1", '"x"', '{"type": "x"}']), rng.choice([60_000, 600_000])
    document = VALID[path] | {name: "@@"}
    return path, written(document).replace(b'"@@"', f"[{f'{one}, ' * count}null]".encode()), REFUSED


def out_of_range(rng: random.Random) -> Made:
    """Token ids."""
    ids = rng.choice([[-1], [4096], [2**31], [2**63], [10**30], [1.0], [True], [[5, -5]], [5, None], []])
    if rng.random() < 0.3:
        return (
            "/v1/chat/completions",
            written({"messages": TALK, "max_tokens": 2, "logit_bias": {str(ids[:1]): 1}}),
            REFUSED,
        )
    if rng.random() < 0.5:
        return "/detokenize", written({"tokens": ids}), EITHER
    return "/v1/completions", written({"prompt": ids, "max_tokens": 2}), REFUSED


def extreme(rng: random.Random) -> Made:
    """Settings at the ends of what is allowed."""
    ban = {str(id): -100 for id in range(1024)}
    more: list[dict[str, Any]] = [
        {"temperature": 1e-300},
        {"temperature": 100, "top_p": 0, "min_p": 1},
        {"temperature": 5e-324, "presence_penalty": -100, "frequency_penalty": 100},
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": 100, "temperature": 1e-9},
        {"logit_bias": ban},
        {"logit_bias": {"4095": 100, "0": 100}},
        {"top_k": 2**31, "penalty_window": 0},
        {"seed": -(2**63)},
        {"seed": 2**64 - 1, "n": 16},
        {"max_tokens": 2**31},
        {"max_completion_tokens": 1014},
        {"stop": ["\ud800", "\x00", " "]},
    ]
    document = {"messages": TALK, "max_tokens": 3, "temperature": 1} | rng.choice(more)
    return "/v1/chat/completions", written(document), EITHER


def hostile_schema(rng: random.Random) -> Made:
    deep_schema: dict[str, Any] = {"type": "string"}
    for _ in range(25):
        deep_schema = {"type": "object", "properties": {"a": deep_schema}, "required": ["a"]}
    schemas: list[Any] = [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "http://127.0.0.1:1/x.json"},
        {"$ref": "file:///etc/passwd"},
        {"type": "string", "pattern": "(a+)+$"},
        {"type": "string", "pattern": "(" * 500},
        {"type": "string", "pattern": "a{1,100000}"},
        {"type": "string", "pattern": "(?=x)(?<=y)\\1"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {}, "minItems": 10**9},
        {"enum": [str(at) for at in range(5000)]},
        {"enum": []},
        {"anyOf": [{"const": at} for at in range(2000)]},
        {"allOf": [{"anyOf": [{"const": [a, b]} for b in range(8)]} for a in range(8)]},
        {"type": "object", "properties": {f"p{at}": {"type": "integer"} for at in range(1500)}},
        {"type": "number", "minimum": 1e308, "multipleOf": 1e-300},
        {"type": "whatever"},
        {"not": {}},
        {"type": ["string", 5]},
        False,
        deep_schema,
        {"description": "x" * 70_000},
        {"\ud800": "\x00"},
    ]
    schema = rng.choice(schemas)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    asked = {"tools": [tool], "tool_choice": "required"} if rng.random() < 0.3 else {"response_format": form}
    return "/v1/chat/completions", written({"messages": TALK, "max_tokens": 4, "temperature": 0} | asked), EITHER


def bounded(path: str, document: dict[str, Any]) -> dict[str, Any]:
    """An answer to the end of the context is not what is tried here."""
    name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    if document.get(name, 2) is None:
        document[name] = 2
    return document


KINDS: tuple[Callable[[random.Random], Made], ...] = (
    *(truncated, not_an_object, wrong_type, wrong_type_inside, huge_number, deep, not_utf8, odd_text, raw_control),
    *(twice, long_text, too_many, many_values, out_of_range, extreme, hostile_schema),
)
