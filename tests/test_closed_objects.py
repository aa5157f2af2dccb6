"""Which objects get no other properties than those listed, and which are left open."""

from copy import deepcopy
from typing import Any

import pytest

from hetero.server.closed_objects import closed

A: Any = {"properties": {"a": {"type": "integer"}}}
B: Any = {"type": "object", "properties": {"b": {}}, "required": ["b"]}
CLOSED_A, CLOSED_B = (one | {"additionalProperties": False} for one in (A, B))
CAT, DOG = ({"properties": {"kind": {"const": kind}, kind: {}}, "required": ["kind"]} for kind in ("cat", "dog"))

CLOSED: dict[str, tuple[Any, Any]] = {
    "listed": (A, CLOSED_A),
    "nothing listed": (
        {"type": "object", "properties": {}},
        {"properties": {}, "type": "object"} | {"additionalProperties": False},
    ),
    "items": ({"items": A, "prefixItems": [B]}, {"items": CLOSED_A, "prefixItems": [CLOSED_B]}),
    "further properties": ({"additionalProperties": A}, {"additionalProperties": CLOSED_A}),
    "a pattern": ({"patternProperties": {"^x": A}}, {"patternProperties": {"^x": CLOSED_A}}),
    "one of any": ({"anyOf": [A, B, {"type": "null"}]}, {"anyOf": [CLOSED_A, CLOSED_B, {"type": "null"}]}),
    "one object": ({"oneOf": [B, {"type": "null"}]}, {"oneOf": [CLOSED_B, {"type": "null"}]}),
    "kinds": (
        {"oneOf": [CAT, DOG]},
        {"oneOf": [CAT | {"additionalProperties": False}, DOG | {"additionalProperties": False}]},
    ),
    "all of one": ({"allOf": [B], "title": "b"}, {"allOf": [CLOSED_B], "title": "b"}),
    "itself": (
        {"properties": {"a": {"$ref": "#"}}},
        {"properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
    ),
    "a name to be escaped": (
        {"$defs": {"x/y~ z": A}, "items": {"$ref": "#/$defs/x~1y~0%20z"}},
        {"$defs": {"x/y~ z": CLOSED_A}, "items": {"$ref": "#/$defs/x~1y~0%20z"}},
    ),
    "a property of that name": (
        {"properties": {"properties": {"type": "object"}, "allOf": A}},
        {"properties": {"properties": {"type": "object"}, "allOf": CLOSED_A}, "additionalProperties": False},
    ),
    "open around closed": (
        {"properties": {"a": A}, "additionalProperties": True},
        {"properties": {"a": CLOSED_A}, "additionalProperties": True},
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_listed_is_all(name: str) -> None:
    schema, expected = CLOSED[name]
    given = deepcopy(schema)
    assert closed(given) == expected
    assert given == schema, "what the client sent is what the model is told"


OPEN: dict[str, Any] = {
    "any": True,
    "none": False,
    "any object": {"type": "object"},
    "further ones said": A | {"additionalProperties": True},
    "unevaluated said": A | {"unevaluatedProperties": True},
    "by pattern": A | {"patternProperties": {"^x": {}}},
    "required, not listed": {"properties": {"a": {}}, "required": ["a", "z"]},
    "more than listed": {"properties": {"a": {}}, "minProperties": 2},
    "constants": A | {"enum": [{"z": 1}]},
    "all of": {"allOf": [A, B]},
    "within all of": {"allOf": [{"properties": {"x": A}}, {"properties": {"x": B}}]},
    "reference beside": {"$defs": {"base": A}, "$ref": "#/$defs/base", "properties": {"b": {}}},
    "any beside": {"properties": {"x": A}, "anyOf": [{"properties": {"x": B}}]},
    "two words": {"anyOf": [A], "oneOf": [B]},
    "required beside": {"required": ["z"], "anyOf": [A, B]},
    "condition": {"if": A, "then": B, "else": A},
    "condition beside": A | {"if": {"required": ["a"]}, "then": B},
    "depends": A | {"dependentSchemas": {"a": B}},
    "not": {"not": A},
    "either, which fit both": {"oneOf": [A, B]},
    "two of one kind": {"oneOf": [CAT, CAT]},
    "patterns that overlap": {"patternProperties": {"^x": A, "y$": B}},
    "within constants": {"const": A, "default": A, "examples": [A]},
    "another document": {"properties": {"a": {"$ref": "https://example.com/a.json"}}},
    "another base": {"properties": {"a": {"$id": "https://example.com/a.json", "items": {"$ref": "#/x"}}}},
    "by anchor": {"properties": {"a": {"$ref": "#somewhere"}}},
    "dynamic": {"properties": {"a": {"$dynamicRef": "#node"}}},
    "nowhere": {"properties": {"a": {"$ref": "#/$defs/none"}}},
}


@pytest.mark.parametrize("name", OPEN)
def test_what_is_left_open(name: str) -> None:
    assert closed(OPEN[name]) == OPEN[name]


def test_what_is_combined_somewhere_is_open_everywhere() -> None:
    """Alone it could be closed; where it is combined, nothing would fit any more."""
    defs = {"base": A, "more": {"allOf": [{"$ref": "#/$defs/base"}, B]}}
    schema = {"$defs": defs, "prefixItems": [{"$ref": "#/$defs/base"}, {"$ref": "#/$defs/more"}]}
    assert closed(schema) == schema
    alone = {"$defs": defs, "items": {"$ref": "#/$defs/base"}}
    assert closed(alone) == {"$defs": defs | {"base": CLOSED_A}, "items": {"$ref": "#/$defs/base"}}
