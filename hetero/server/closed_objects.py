"""Objects that list their properties get no others while a document is sampled.

To JSON Schema an object that lists `properties` and says nothing more is open: any key may follow. Who writes a reader
of such documents means that; who asks for one hardly does, and a small model finds another key for ever. Every document
of the closed schema is one of the schema as it was given. Left open is what says what else there may be, and what is
combined with other schemas of the same object, whose properties it would forbid.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

Document = Mapping[str, Any] | bool

BRANCHES = ("allOf", "anyOf", "oneOf")  # with `$ref`: they speak of the same value
COMBINING = {
    *BRANCHES,
    *("$ref", "not", "if", "then", "else"),
    *("dependencies", "dependentRequired", "dependentSchemas", "propertyNames"),
}
ADDING = {"additionalProperties", "unevaluatedProperties", "patternProperties"}
OBJECT = {"properties", "required", "minProperties", "maxProperties", *ADDING}
ITEMS = {"items", "prefixItems", "additionalItems", "contains", "unevaluatedItems"}
VALUES = {"enum", "const"}
ALONE = {*OBJECT, *ITEMS, *VALUES}  # words that a schema may not hold beside one `$ref`, if that is to be closed
NAMED = ("properties", "patternProperties")  # name or pattern to the schema of a part
BASES = ("$id", "id")  # below the root: what a `$ref` there is a pointer from
DYNAMIC = {"$dynamicRef", "$recursiveRef"}


def closed(document: Document) -> Document:
    """The schema with `additionalProperties` false, wherever that is what its author means; `document` stays."""
    if not isinstance(document, dict):
        return document
    found = Objects(document)
    return rebuilt(document, found.closable()) if found.understood else document


class Objects:
    """Every schema that a value or a part of it is held to, and whether something else speaks of the same value."""

    def __init__(self, root: dict[str, Any]):
        self.understood = True  # each `$ref` is a pointer from the root
        self._root = root
        self._alone: dict[int, dict[str, Any]] = {}  # by id: a document of JSON holds no object twice
        self._combined: set[int] = set()
        waiting: list[tuple[Any, bool]] = [(root, False)]
        while waiting:
            schema, combined = waiting.pop()
            seen = self._combined if combined else self._alone
            if not isinstance(schema, dict) or id(schema) in seen:
                continue
            if combined:
                self._combined.add(id(schema))
            else:
                self._alone[id(schema)] = schema
            based = schema is not root and any(isinstance(schema.get(word), str) for word in BASES)
            self.understood &= not based and DYNAMIC.isdisjoint(schema)
            waiting += self._below(schema, combined)

    def closable(self) -> set[int]:
        return {at for at, schema in self._alone.items() if at not in self._combined and is_list(schema)}

    def _below(self, schema: dict[str, Any], combined: bool) -> Iterator[tuple[Any, bool]]:
        same = [word for word in COMBINING if word in schema]
        one = len(same) == 1 and ALONE.isdisjoint(schema)
        for branch, apart in self._same_value(schema):
            yield branch, combined or not (one and apart)
        patterns = values(schema.get("patternProperties"))  # of which two may fit one name
        combined = combined or bool(same) or (bool(patterns) and len(patterns) + ("properties" in schema) > 1)
        for word in NAMED:
            yield from ((part, combined) for part in values(schema.get(word)))
        for word in ("items", "additionalItems", "additionalProperties", "unevaluatedProperties", "prefixItems"):
            part = schema.get(word)
            yield from ((one, combined) for one in (part if isinstance(part, list) else [part]))

    def _same_value(self, schema: dict[str, Any]) -> Iterator[tuple[Any, bool]]:
        """Schemas of the same value, and whether a value that fits one of them is seen by no other."""
        if "$ref" in schema:
            yield self._target(schema["$ref"]), True
        for word in BRANCHES:
            branches = schema.get(word)
            if isinstance(branches, list):
                apart = {"allOf": len(branches) == 1, "anyOf": True, "oneOf": self._told_apart(branches)}[word]
                yield from ((branch, apart) for branch in branches)
        for word in ("then", "else"):
            yield schema.get(word), False
        for word in ("dependencies", "dependentSchemas"):
            yield from ((branch, False) for branch in values(schema.get(word)))

    def _target(self, pointer: Any) -> Any:
        """None, and the schema is not understood, where it is no pointer from the root, or leads nowhere."""
        found: Any = self._root
        if not isinstance(pointer, str) or (pointer != "#" and not pointer.startswith("#/")):
            found = None
        for part in pointer.split("/")[1:] if found is not None else ():
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isascii() and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                found = found.get(name) if isinstance(found, dict) else None
        self.understood &= found is not None
        return found

    def _told_apart(self, branches: list[Any]) -> bool:
        """No value fits two of them, open as they are: one object at most, or a property that is constant in each."""
        objects = [one for one in map(self._resolved, branches) if may_be_object(one)]
        tags = [constants(one) for one in objects]
        return len(objects) < 2 or any(
            len(set[str]().union(*(tag[name] for tag in tags))) == sum(len(tag[name]) for tag in tags)
            for name in tags[0]
            if all(name in tag for tag in tags)
        )

    def _resolved(self, schema: Any) -> Any:
        for _ in range(8):
            if isinstance(schema, dict) and "$ref" in schema:
                schema = self._target(schema["$ref"])
        return schema


def is_list(schema: dict[str, Any]) -> bool:
    """An object by its properties, of which nothing says that there are others."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not (COMBINING | ADDING | VALUES).isdisjoint(schema):
        return False
    least = schema.get("minProperties", 0)
    listed = isinstance(required, list) and all(isinstance(name, str) and name in properties for name in required)
    return listed and isinstance(least, (int, float)) and least <= len(properties)


def may_be_object(schema: Any) -> bool:
    kinds = schema.get("type", "object") if isinstance(schema, dict) else "object"
    return "object" in (kinds if isinstance(kinds, list) else [kinds])


def constants(schema: Any) -> dict[str, set[str]]:
    """Required properties that are one of some strings, and which."""
    found: dict[str, set[str]] = {}
    given = schema if isinstance(schema, dict) else {}
    required, properties = given.get("required"), given.get("properties")
    listed = properties if isinstance(properties, dict) else {}
    for name in required if isinstance(required, list) else ():
        part = listed.get(name) if isinstance(name, str) else None
        if isinstance(part, dict):
            texts = [part["const"]] if "const" in part else part.get("enum")
            if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
                found[name] = set(texts)
    return found


def values(schemas: Any) -> list[Any]:
    return list(schemas.values()) if isinstance(schemas, dict) else []


def rebuilt(value: Any, closable: set[int]) -> Any:
    if isinstance(value, list):
        return [rebuilt(one, closable) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: rebuilt(one, closable) for name, one in value.items()}
    return found | {"additionalProperties": False} if id(value) in closable else found
