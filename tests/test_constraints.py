"""Grammars without a model: whatever is drawn from their masks is what was asked for."""

import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from hetero.continuation import Constraint
from hetero.errors import RequestError, UnsupportedError
from hetero.generate import AnswerText, Prompt
from hetero.server.constraints import Vocabulary, constraint_for
from hetero.server.grammar import ANY_OBJECT, Calls, Schema
from hetero.server.schema_limits import check_schema, weight
from hetero.server.tool_calls import CallArguments, CallStarted, ToolCallParser
from hetero.tokenizer import CONTROL, Tokenizer
from hetero.tool_format import KIMI, NAMED, ToolFormat, format_of
from tests.test_tokenizer import from_metadata, v3_metadata

ANSWER = Prompt([0, 1, 2], opens_thinking=False)
NEVER_THINKS = Prompt([0, 1, 2])
HURRY = [['"}', "}", "]", '"'], [":", ",", "{", "["], list("0123456789abcdef")]  # what ends, then what leads on


@pytest.fixture(scope="module")
def v3() -> Vocabulary:
    """The 129,280 tokens of V3 and R1."""
    metadata = v3_metadata()
    return Vocabulary(from_metadata(metadata))


@pytest.fixture(scope="module")
def tools_v3(v3: Vocabulary) -> ToolFormat:
    return format_of(v3.tokenizer, "")


def allowed(mask: np.ndarray, size: int) -> np.ndarray:
    assert mask.dtype == np.uint32 and mask.shape == (-(-size // 32),)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[size:].any()
    return np.flatnonzero(bits)


def draw(
    vocabulary: Vocabulary, make: Callable[[], Constraint] | None, seed: int, start: Sequence[int] = (), most: int = 400
) -> list[int]:
    """Uniformly among what may come, the longer the more what ends; fails if it does not end by itself."""
    assert make is not None
    constraint, chance = make(), np.random.default_rng(seed)
    groups = [[*vocabulary.tokenizer.stop_ids]]
    groups += [[id for text in texts if (id := vocabulary.token(text)) is not None] for texts in HURRY]
    ids = list(start)
    for id in start:
        constraint.accept(id)
    while not constraint.ended:
        assert len(ids) < most, vocabulary.tokenizer.decode(ids)
        mask = constraint.mask()
        assert mask is not None, "free text: start should have led beyond"
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        choices: Any = ()
        if chance.random() < (len(ids) - len(start)) / 20:
            choices = next((found for group in groups if (found := [id for id in group if bits[id]])), ())
        id = int(chance.choice(choices if len(choices) else np.flatnonzero(bits)))
        if id in vocabulary.tokenizer.stop_ids:
            break
        ids.append(id)
        constraint.accept(id)
    return ids


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "pattern": "^[a-z]{1,8}@[a-z]{1,8}\\.(org|net)$"},
        "tags": {"type": "array", "items": {"enum": ["a", "ü b", 3, None, {"x": [1]}]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "people": {"type": "array", "items": PERSON, "maxItems": 2},
    "nothing": {},
    "true": True,
    "constants": {"anyOf": [{"const": "yes"}, {"const": 7}, {"const": [False, {"a": None}]}]},
    "numbers": {"type": "array", "items": {"type": "number", "exclusiveMinimum": -2.5, "maximum": 7}, "minItems": 3},
    "multiples": {"type": "array", "items": {"type": "integer", "multipleOf": 7, "minimum": 1}, "minItems": 2},
    "types": {"type": ["string", "null", "boolean"]},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 3},
    "patterns": {"type": "object", "patternProperties": {"^[a-c]$": {"type": "null"}}, "additionalProperties": False},
    "all of": {"allOf": [{"required": ["a"]}, {"type": "object", "properties": {"a": {"type": "boolean"}}}]},
    "inherited": {
        "$defs": {"base": {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}},
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}],
    },
    "tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": False, "minItems": 2},
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "inner": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["value"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "formats": {
        "type": "object",
        "properties": {"id": {"format": "uuid"}, "day": {"format": "date"}, "at": {"format": "ipv4"}},
        "required": ["id", "day", "at"],
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_documents_are_valid(v3: Vocabulary, name: str) -> None:
    schema = SCHEMAS[name]
    make = constraint_for(v3, NEVER_THINKS, schema=Schema(schema, strict=True))
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    written = set()
    for seed in range(8):
        text = v3.tokenizer.decode(draw(v3, make, seed))
        validator.validate(json.loads(text))
        written.add(text)
    assert len(written) > 1


LISTED = {  # as pydantic writes them
    "$defs": {
        "Cat": {
            "type": "object",
            "properties": {"kind": {"const": "cat", "type": "string"}, "lives": {"type": "integer"}},
            "required": ["kind"],
        },
        "Dog": {
            "type": "object",
            "properties": {"kind": {"const": "dog", "type": "string"}, "owner": {"$ref": "#/$defs/Owner"}},
            "required": ["kind", "owner"],
        },
        "Owner": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}},
    },
    "type": "object",
    "properties": {
        "pets": {
            "type": "array",
            "items": {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]},
            "minItems": 2,
            "maxItems": 3,
        },
        "owner": {"anyOf": [{"$ref": "#/$defs/Owner"}, {"type": "null"}], "default": None},
        "heir": {"allOf": [{"$ref": "#/$defs/Owner"}], "description": "older versions"},
    },
    "required": ["pets", "owner", "heir"],
}


@pytest.mark.parametrize("strict", [True, False])
def test_no_property_but_those_listed(v3: Vocabulary, strict: bool) -> None:
    """A document of an open schema, for generation, has the keys that the schema names; in arguments of tools too."""
    schema = json.loads(json.dumps(LISTED).replace("oneOf", "anyOf" if strict else "oneOf"))
    validator = jsonschema_rs.validator_for(schema)
    tools = Calls(NAMED, [tool("go", schema, strict)], required=True, parallel=False)
    document = constraint_for(v3, NEVER_THINKS, schema=Schema(schema, strict))
    arguments = constraint_for(v3, NEVER_THINKS, calls=tools)
    for seed in range(6):
        found = [json.loads(v3.tokenizer.decode(draw(v3, document, seed)))]
        found.append(read_call(v3, NAMED, draw(v3, arguments, seed))[1])
        for value in found:
            validator.validate(value)
            assert set(value) == {"pets", "owner", "heir"}
            assert {*(value["owner"] or ()), *value["heir"]} <= {"name"}
            for pet in value["pets"]:
                assert set(pet) <= ({"kind", "lives"} if pet["kind"] == "cat" else {"kind", "owner"})


def test_an_object_is_an_object(v3: Vocabulary) -> None:
    make = constraint_for(v3, NEVER_THINKS, schema=ANY_OBJECT)
    for seed in range(8):
        assert isinstance(json.loads(v3.tokenizer.decode(draw(v3, make, seed))), dict)


BLANKS = 41  # a line break and indentation, or 8 characters before the answer


def blank_draw(vocabulary: Vocabulary, make: Callable[[], Constraint] | None, seed: int) -> list[int]:
    """White space, the longest that may come, as long as it may; else what ends, else anything."""
    assert make is not None
    constraint, chance, ids = make(), np.random.default_rng(seed), list[int]()
    texts = [bytes(text) for text in vocabulary.tokens]
    blank = sorted((id for id, text in enumerate(texts) if text and not text.strip()), key=lambda id: -len(texts[id]))
    ends = [
        id for text in ("}", "]", '"', ":", ",", "{", "[", *"0123456789") if (id := vocabulary.token(text)) is not None
    ]
    preferred = [*blank, *vocabulary.tokenizer.stop_ids, *ends]
    while not constraint.ended and len(ids) < 1000:
        bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
        id = next((id for id in preferred if bits[id]), None)
        id = int(chance.choice(np.flatnonzero(bits))) if id is None else id
        if id in vocabulary.tokenizer.stop_ids:
            break
        ids.append(id)
        constraint.accept(id)
    return ids


@pytest.mark.parametrize("name", ["person", "people", "object", "numbers", "tree"])
def test_white_space_has_an_end(v3: Vocabulary, name: str) -> None:
    """Of a model that would write nothing else: what is between two parts ends, and the document is complete."""
    schema = SCHEMAS.get(name, ANY_OBJECT.document)
    make = constraint_for(v3, NEVER_THINKS, schema=Schema(schema, strict=True))
    for seed in range(3):
        text = v3.tokenizer.decode(blank_draw(v3, make, seed))
        jsonschema_rs.validate(schema, json.loads(text))
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
        runs = [len(run) for run in re.findall(r"\s+", outside)]
        assert runs and max(runs) <= BLANKS, text


def test_white_space_of_arguments_has_an_end(written: tuple[Vocabulary, ToolFormat]) -> None:
    vocabulary, format = written
    calls = Calls(format, TOOLS, required=True, only=("go.to-1",), parallel=False)
    make = constraint_for(vocabulary, NEVER_THINKS, calls=calls)
    for seed in range(3):
        ids = blank_draw(vocabulary, make, seed)
        text, (_, found) = vocabulary.tokenizer.decode(ids), calls_in(vocabulary, format, ids)
        assert found and max(len(run) for run in re.findall(r"\s+", text)) <= BLANKS, text


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a":1,"b":[2,3]}', True),
        ('{"a": 1, "b": [2, 3]}', True),
        ('{\n  "a": 1,\n  "b": [\n    2,\n    3\n  ]\n}', True),
        ('{\r\n\t"a": 1\r\n}', True),
        ('{ "a" : 1 }', True),
        ('\n\n{"a": 1}', True),
        ("{  ", False),
        ("{\n\n", False),
        ('{"a":\t', False),
        ('{"a": 1  ', False),
        ("{ \n", False),
        ("{\n" + " " * 41, False),
        ("\n" * 9, False),
    ],
)
def test_white_space_as_models_write_it(v3: Vocabulary, text: str, fits: bool) -> None:
    """Compact, after separators, indented."""
    constraint = constraint_for(v3, NEVER_THINKS, schema=ANY_OBJECT)()
    ids = [v3.token(character) for character in text]
    if fits:
        for id in ids:
            constraint.accept(id)
        assert constraint.ended
    else:
        for id in ids[:-1]:
            constraint.accept(id)
        with pytest.raises(RequestError):
            constraint.accept(ids[-1])


def test_what_is_not_strict_enforces_what_it_can(v3: Vocabulary) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "contains": {"const": 5}}
    with pytest.raises(RequestError, match=r"the schema of the answer cannot be enforced.*uniqueItems.*leave"):
        constraint_for(v3, NEVER_THINKS, schema=Schema(schema, strict=True))
    make = constraint_for(v3, NEVER_THINKS, schema=Schema(schema))
    document = json.loads(v3.tokenizer.decode(draw(v3, make, 0)))
    assert isinstance(document, list) and all(isinstance(item, int) for item in document)
    assert "x-guidance" not in schema


def test_a_client_does_not_set_the_librarys_options(v3: Vocabulary) -> None:
    schema = {"type": "integer", "not": {"const": 1}, "x-guidance": {"lenient": True, "whitespace_pattern": "x{9999}"}}
    with pytest.raises(RequestError, match="not"):
        constraint_for(v3, NEVER_THINKS, schema=Schema(schema, strict=True))


def test_it_may_end_only_where_the_document_does(v3: Vocabulary) -> None:
    make = constraint_for(v3, NEVER_THINKS, schema=Schema({"type": "integer"}, strict=True))
    assert make is not None
    constraint = make()
    stops = v3.tokenizer.stop_ids
    assert not stops & set(allowed(constraint.mask(), v3.size).tolist())
    constraint.accept(v3.token("7"))
    assert stops <= set(allowed(constraint.mask(), v3.size).tolist()), "7 may be all of it"
    assert not constraint.ended, "or be followed by 0"
    constraint = constraint_for(v3, NEVER_THINKS, schema=Schema({"const": 7}, strict=True))()
    constraint.accept(v3.token("7"))
    assert constraint.ended


def test_special_tokens_are_no_text(v3: Vocabulary) -> None:
    constraint = constraint_for(v3, NEVER_THINKS, schema=Schema({"type": "string"}))()
    constraint.accept(v3.token('"'))
    choices = set(allowed(constraint.mask(), v3.size).tolist())
    special = {v3.token(text) for text in ("<think>", "<｜User｜>", "<｜tool▁sep｜>")} | {
        v3.tokenizer.bos_id,
        v3.size - 1,
    }
    assert not choices & (special | v3.tokenizer.stop_ids)
    assert v3.token("<") in choices and len(choices) > 100_000


def test_a_wrong_token_is_an_error_of_this_request(v3: Vocabulary) -> None:
    constraint = constraint_for(v3, NEVER_THINKS, schema=ANY_OBJECT)()
    with pytest.raises(RequestError, match="cannot be held to its grammar"):
        constraint.accept(v3.token("x"))
    with pytest.raises(RequestError):
        constraint.mask()


def test_answers_of_one_prompt_do_not_know_each_other(v3: Vocabulary) -> None:
    make = constraint_for(v3, NEVER_THINKS, schema=Schema(PERSON, strict=True))
    expected = [draw(v3, make, seed) for seed in range(4)]
    found: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        found[seed] = draw(v3, make, seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(4)] == expected


def test_reasoning_is_free_and_comes_first(v3: Vocabulary) -> None:
    opened = Prompt(v3.tokenizer.encode("<think>\n"), opens_thinking=True)
    make = constraint_for(v3, opened, schema=Schema({"const": 7}, strict=True))
    constraint = make()
    before = set(allowed(constraint.mask(), v3.size).tolist())
    assert before == set(range(v3.size)) - v3.tokenizer.stop_ids, "it may not end before there is an answer"
    thoughts = v3.tokenizer.encode('Let me {"a": see}</think>')
    for newlines in ([], v3.tokenizer.encode("\n\n")):
        ids = draw(v3, make, 0, [*thoughts, *newlines])
        assert v3.tokenizer.decode(ids[len(thoughts) :]).strip() == "7"


def test_reasoning_that_the_model_may_begin(v3: Vocabulary) -> None:
    schema = Schema({"const": 7}, strict=True)
    make = constraint_for(v3, ANSWER, schema=schema)
    first = set(allowed(make().mask(), v3.size).tolist())
    assert {v3.token("<think>"), v3.token("7")} <= first
    thoughts = v3.tokenizer.encode("<think>hm</think>")
    assert v3.tokenizer.decode(draw(v3, make, 0, thoughts)[len(thoughts) :]).strip() == "7"
    closed = Prompt(v3.tokenizer.encode("hi</think>\n"), opens_thinking=False)
    first = set(allowed(constraint_for(v3, closed, schema=schema)().mask(), v3.size).tolist())
    assert v3.token("<think>") not in first and v3.token("7") in first


@pytest.mark.parametrize(
    "begin", ["{", ' {"name": "Zo', '{"name": "Zoe", "age": 1', '{"name": "Zoe", "age": 12, "tags": ']
)
def test_a_document_that_was_begun_is_gone_on_with(v3: Vocabulary, begin: str) -> None:
    """Cut where no token of the model's ends; nothing else of the prompt counts, and it cannot think any more."""
    prompt = Prompt(v3.tokenizer.encode("<think>hm</think>" + begin), opens_thinking=False, begun=begin)
    make = constraint_for(v3, prompt, schema=Schema(PERSON, strict=True))
    assert make is not None and v3.token("<think>") not in allowed(make().mask(), v3.size)
    for seed in range(4):
        jsonschema_rs.validate(PERSON, json.loads(begin + v3.tokenizer.decode(draw(v3, make, seed))))


def test_what_begins_no_document_is_refused(v3: Vocabulary) -> None:
    for begin in ("Sure: {", '{"age"', '{"name": 7', "[", '{"name": ""'):
        prompt = Prompt([1], opens_thinking=False, begun=begin)
        with pytest.raises(RequestError, match="begins no document of the schema"):
            constraint_for(v3, prompt, schema=Schema(PERSON, strict=True))
    whole = Prompt([1], opens_thinking=False, begun='{"a": 1}')
    make = constraint_for(v3, whole, schema=Schema({"type": "object", "properties": {"a": {}}}))
    assert make is not None and make().ended, "nothing is left to say"


def test_begun_text_leads_to_calls_as_any_text(v3: Vocabulary, tools_v3: ToolFormat) -> None:
    calls = Calls(tools_v3, [tool("f", POINT)])
    make = constraint_for(v3, Prompt([1], opens_thinking=False, begun="I look"), calls=calls)
    assert make is not None and make().mask() is None
    start = [*v3.tokenizer.encode(" it up."), tools_v3.ids[0]]
    assert '"x"' in v3.tokenizer.decode(draw(v3, make, 0, start))


def tool(name: str, parameters: Any, strict: bool = False) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}


POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "to": {"enum": ["a", "`"]}},
    "required": ["x", "to"],
    "additionalProperties": False,
}
TOOLS = [tool("go.to-1", POINT, strict=True), tool("stop", {"type": "object", "additionalProperties": False})]
SCHEMA_OF = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}


def calls_in(vocabulary: Vocabulary, format: ToolFormat, ids: list[int]) -> tuple[str, list[tuple[str, Any]]]:
    answer_text = AnswerText(vocabulary.tokenizer, ANSWER, (), frozenset(format.ids))
    pieces = [piece for id in ids for piece in answer_text.push(id)] + answer_text.finish()
    parser = ToolCallParser(format)
    parts = [part for piece in pieces if not piece.thinking for part in parser.push(piece.text)] + parser.finish()
    names = [part.name for part in parts if isinstance(part, CallStarted)]
    arguments = ["" for _ in names]
    for part in parts:
        if isinstance(part, CallArguments):
            arguments[part.index] += part.delta
    found = [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]
    for name, value in found:
        jsonschema_rs.validate(SCHEMA_OF[name], value)
    return "".join(part for part in parts if isinstance(part, str)), found


def kimi_vocabulary() -> Vocabulary:
    base = sorted({chr(n) for n in range(33, 127)} | {"Ġ", "Ċ"})
    tokens = [*base, "<end>", *KIMI.marks, "</think>"]
    types = [1] * len(base) + [CONTROL] * (len(tokens) - len(base))
    return Vocabulary(Tokenizer(tokens, types, [], "deepseek-v3", special_ids={"eos": len(base)}))


@pytest.fixture(scope="module", params=["named", "fenced", "kimi", "text"])
def written(request: pytest.FixtureRequest, v3: Vocabulary) -> tuple[Vocabulary, ToolFormat]:
    if request.param == "kimi":
        vocabulary = kimi_vocabulary()
        return vocabulary, format_of(vocabulary.tokenizer, "")
    if request.param == "text":
        return v3, NAMED
    return v3, format_of(v3.tokenizer, "```json" if request.param == "fenced" else "")


def test_a_call_is_required(written: tuple[Vocabulary, ToolFormat]) -> None:
    vocabulary, format = written
    make = constraint_for(vocabulary, NEVER_THINKS, calls=Calls(format, TOOLS, required=True))
    seen, most = set(), 0
    for seed in range(12):
        text, calls = calls_in(vocabulary, format, draw(vocabulary, make, seed))
        assert not text.strip() and calls
        seen |= {name for name, _ in calls}
        most = max(most, len(calls))
    assert seen == set(SCHEMA_OF) and most > 1


def test_no_token_is_lost_before_a_call(written: tuple[Vocabulary, ToolFormat]) -> None:
    """No white space, but for a blank line after reasoning, which models write there."""
    vocabulary, format = written
    calls = Calls(format, TOOLS, required=True)
    (first, *_) = vocabulary.tokenizer.encode(format.calls_begin, special=format.marked)
    blank = {id for id, text in enumerate(vocabulary.tokens) if text and not text.strip()}
    bare = set(allowed(constraint_for(vocabulary, NEVER_THINKS, calls=calls)().mask(), vocabulary.size).tolist())
    assert first in bare and not blank & bare
    constraint = constraint_for(vocabulary, Prompt([1], opens_thinking=True), calls=calls)()
    for id in vocabulary.tokenizer.encode("</think>", special=True):
        constraint.accept(id)
    for at in range(3):
        choices = set(allowed(constraint.mask(), vocabulary.size).tolist())
        assert first in choices and bool(blank & choices) == (at < 2)
        if at < 2:
            constraint.accept(vocabulary.token("\n"))


def test_one_call_of_one_tool(written: tuple[Vocabulary, ToolFormat]) -> None:
    vocabulary, format = written
    calls = Calls(format, TOOLS, required=True, only=("go.to-1",), parallel=False)
    for seed in range(6):
        _, found = calls_in(
            vocabulary, format, draw(vocabulary, constraint_for(vocabulary, NEVER_THINKS, calls=calls), seed)
        )
        assert [name for name, _ in found] == ["go.to-1"]


def test_calls_of_some_of_the_tools(written: tuple[Vocabulary, ToolFormat]) -> None:
    vocabulary, format = written
    begin = vocabulary.tokenizer.encode(format.calls_begin, special=format.marked)
    offered = [*TOOLS, tool("never", {})]
    for required, start in ((True, []), (False, begin)):
        calls = Calls(format, offered, required=required, only=("stop", "go.to-1"))
        make, seen = constraint_for(vocabulary, NEVER_THINKS, calls=calls), set[str]()
        for seed in range(12):
            seen |= {name for name, _ in calls_in(vocabulary, format, draw(vocabulary, make, seed, start))[1]}
        assert seen == {"stop", "go.to-1"}


def test_the_model_decides(written: tuple[Vocabulary, ToolFormat]) -> None:
    vocabulary, format = written
    make = constraint_for(vocabulary, NEVER_THINKS, calls=Calls(format, TOOLS))
    constraint = make()
    words = vocabulary.tokenizer.encode("I look: ")
    for id in words:
        constraint.accept(id)
    mask = constraint.mask()
    assert mask is None if format.marked else vocabulary.tokenizer.stop_ids <= set(allowed(mask, vocabulary.size))
    assert not constraint.ended
    begin = vocabulary.tokenizer.encode(format.calls_begin, special=format.marked)
    for seed in range(4):
        text, found = calls_in(vocabulary, format, draw(vocabulary, make, seed, [*words, *begin]))
        assert found and text == "I look: "


def test_a_document_or_a_call(v3: Vocabulary, tools_v3: ToolFormat) -> None:
    make = constraint_for(v3, NEVER_THINKS, schema=Schema(PERSON, strict=True), calls=Calls(tools_v3, TOOLS))
    assert calls_in(v3, tools_v3, draw(v3, make, 0, [tools_v3.ids[0]]))[1]
    text, found = calls_in(v3, tools_v3, draw(v3, make, 1, [v3.token("{")]))
    assert not found
    jsonschema_rs.validate(PERSON, json.loads(text))


def test_calls_after_reasoning(v3: Vocabulary, tools_v3: ToolFormat) -> None:
    opened = Prompt([1], opens_thinking=True)
    thoughts = v3.tokenizer.encode("hm <｜tool▁calls▁begin｜></think>\n\n", special=True)
    make = constraint_for(v3, opened, calls=Calls(tools_v3, TOOLS, required=True))
    stops = v3.tokenizer.stop_ids
    assert not stops & set(allowed(make().mask(), v3.size).tolist())
    ids = draw(v3, make, 0, thoughts)
    assert calls_in(v3, tools_v3, ids[len(thoughts) :])[1]
    make = constraint_for(v3, opened, calls=Calls(tools_v3, TOOLS))
    assert make().mask() is None, "what decides by itself may also end"
    ids = draw(v3, make, 0, [*thoughts, *v3.tokenizer.encode("So: "), tools_v3.ids[0]])
    assert calls_in(v3, tools_v3, ids[len(thoughts) :])[1]


def test_tools_that_cannot_be_enforced(v3: Vocabulary, tools_v3: ToolFormat) -> None:
    bad = {"type": "object", "$ref": "https://nowhere.invalid/x"}
    with pytest.raises(RequestError, match=r"the schema of tool go cannot be enforced.*leave"):
        constraint_for(v3, ANSWER, calls=Calls(tools_v3, [*TOOLS, tool("go", bad, strict=True)]))
    calls = Calls(tools_v3, [*TOOLS, tool("go", bad)], required=True, only=("go",))
    name, value = read_call(v3, tools_v3, draw(v3, constraint_for(v3, NEVER_THINKS, calls=calls), 0))
    assert name == "go" and isinstance(value, dict), "any object, where it need not be strict"
    with pytest.raises(RequestError, match="letters"):
        constraint_for(v3, ANSWER, calls=Calls(tools_v3, [tool('a" | "b', {})]))


def read_call(vocabulary: Vocabulary, format: ToolFormat, ids: list[int]) -> tuple[str, Any]:
    text = vocabulary.tokenizer.decode(ids)
    name, _, arguments = text.partition(format.call_begin)[2].partition(format.separator)
    return name, json.loads(arguments.partition(format.call_end)[0])


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def shared(depth: int, word: str) -> dict[str, Any]:
    """Doubles with each step, written out."""
    refs = {f"d{n}": {word: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(depth)}
    return {"$defs": refs | {f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ([1], "is a list"),
    "deep": (nested(70), "64 deep"),
    "deeper than the stack": (nested(50_000), "deep"),
    "many values": ({"enum": [[0]] * 10_000}, "20,000 values"),
    "many bytes": ({"enum": ["x" * 300_000]}, "262,144"),
    "many properties": ({"type": "object", "properties": {f"p{n}": {} for n in range(1001)}}, "1,001 keys"),
    "many alternatives": ({"anyOf": [{"properties": {f"p{n}": {}}} for n in range(1_001)]}, "anyOf of 1,001"),
    "10,000 alternatives": ({"anyOf": [{"const": n} for n in range(10_000)]}, "anyOf of 10,000"),
    "product of alternatives": (
        {"allOf": [{"anyOf": [{"properties": {f"p{n}{m}": {"const": 1}}} for m in range(8)]} for n in range(8)]},
        "too large",
    ),
    "counted repetitions": ({"type": "string", "pattern": "^(x{1000}){1000}$"}, "repeats too much"),
    "of keys": ({"type": "object", "patternProperties": {"((a{99}){99}){99}": {}}}, "repeats too much"),
    "inside": ({"type": "array", "items": {"properties": {"a": {"pattern": "a{99999}"}}}}, "repeats too much"),
    "long pattern": ({"type": "string", "pattern": "a|" * 1000}, "2,000 characters"),
    "no pattern": ({"type": "string", "pattern": "(["}, "cannot be enforced"),
    "looking around": ({"type": "string", "pattern": "(?=a)b"}, "cannot be enforced"),
    "remainders": ({"type": "integer", "multipleOf": 999_983}, "multipleOf 999983"),
    "small remainders": ({"type": "number", "multipleOf": 1e-9}, "multipleOf 1e-09"),
    "elsewhere": ({"$ref": "http://127.0.0.1:1/schema"}, "cannot be enforced"),
    "a file": ({"$ref": "file:///etc/passwd"}, "cannot be enforced"),
    "nowhere": ({"$ref": "#/$defs/none"}, "cannot be enforced"),
    "impossible": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
    "never": (False, "cannot be enforced"),
    "a type that is none": ({"type": "objekt"}, "cannot be enforced"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_schemas_are_refused(v3: Vocabulary, name: str) -> None:
    schema, reason = REFUSED[name]
    with pytest.raises(RequestError, match=reason) as refused:
        constraint_for(v3, NEVER_THINKS, schema=Schema(schema, strict=True))
    assert refused.value.limit and refused.value.remedy and len(str(refused.value)) < 600
    assert "\n" not in str(refused.value)


def test_a_slow_first_mask_is_refused(v3: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetero.server.constraints.FIRST_MASK_SECONDS", 0.0)
    with pytest.raises(RequestError, match="takes too long"):
        constraint_for(v3, NEVER_THINKS, schema=ANY_OBJECT)


BOUNDED: dict[str, Any] = {
    "10,000 constants": {"enum": [f"value {n * 7919}" for n in range(10_000)]},
    "1,000 properties": {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(1000)}},
    "huge minItems": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "huge minLength": {"type": "string", "minLength": 10**9},
    "without end": {"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]},
    "all of all of": shared(40, "allOf"),
    "any of any of": shared(40, "anyOf"),
    "backtracking": {"type": "string", "pattern": "^(a|aa)+(a|aa)+(a|aa)+b$"},
    "many states": {"type": "string", "pattern": "^.*a.{60}$"},
    "itself": {"$ref": "#"},
}


@pytest.mark.parametrize("name", BOUNDED)
def test_hostile_schemas_are_bounded(v3: Vocabulary, name: str) -> None:
    """By what llguidance may spend on a token: after a refusal of this kind only this request ends."""
    chance = np.random.default_rng(0)
    try:
        make = constraint_for(v3, NEVER_THINKS, schema=Schema(BOUNDED[name], strict=True))
        constraint = make()
        for _ in range(100):
            if constraint.ended:
                break
            choices = allowed(constraint.mask(), v3.size)
            if (id := int(chance.choice(choices))) in v3.tokenizer.stop_ids:
                break
            constraint.accept(id)
    except RequestError as refused:
        assert refused.limit and refused.remedy


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("abc", 3),
        ("^x{1000}$", 1000),
        ("^(x{1000}){1000}$", 10**6),
        (r"[a-z]{3}-\d{4,}", 8),
        ("(a|b{2}){3}", 9),
        ("[]a]{7}(b", 8),
        ("{2}", 0),
    ],
)
def test_weight_of_patterns(pattern: str, expected: int) -> None:
    assert weight(pattern) == expected


def test_bounds_on_remainders() -> None:
    for number in (1, 7, 10_000, 0.01, 0.5, 2.5, 0.0001, 100):
        check_schema({"multipleOf": number}, "it")
    for number in (10_007, 0.00001, 1e300, 0, -3, 1 / 3):
        with pytest.raises(RequestError, match="multipleOf"):
            check_schema({"multipleOf": number}, "it")


def test_a_model_without_an_end_has_no_grammar() -> None:
    with pytest.raises(UnsupportedError, match="no token that ends"):
        Vocabulary(Tokenizer(["a", "b"], [1, 1], [], "deepseek-v3"))
