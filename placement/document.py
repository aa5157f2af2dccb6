"""Frozen dataclasses as JSON documents and back, strictly: every key must be there, none may be unknown.

Field types: int, float, str, bool, Literal, dataclasses, X | None, tuple[X, ...], tuple[X, Y]. Numbers are never
negative here, and always finite, integers below 2**63; tuples are lists in JSON.
"""

import types
from dataclasses import fields, is_dataclass
from functools import cache
from math import isfinite
from reprlib import Repr
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from placement.errors import InvalidDocument

T = TypeVar("T")

INTEGERS = 1 << 63  # beyond them sums and products need not be floats any more
_SHORT = Repr()  # of what is wrong, however deep or long it is
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 40


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(kind).items() if get_origin(hint) is not ClassVar}


class Document:
    """Base of the frozen dataclasses: their values are checked when they are made, and they read and write JSON.

    `REMARKS`: keys that a document may have besides, for its readers; `from_json` passes over them.
    """

    REMARKS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, hint in _hints(kind).items():
            _check(getattr(self, name), hint, f"{kind.__name__}.{name}")

    def to_json(self) -> dict[str, Any]:
        kind: Any = type(self)
        return {field.name: _plain(getattr(self, field.name)) for field in fields(kind)}

    @classmethod
    def from_json(cls: type[T], document: Any) -> T:
        """Raises InvalidDocument, which names the key."""
        return _made(document, cls, cls.__name__)


def _plain(value: Any) -> Any:
    if isinstance(value, Document):
        return value.to_json()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _made(value: Any, hint: Any, where: str) -> Any:
    """`value` of a JSON document as a value of the type `hint`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _made_dataclass(value, hint, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _made(value, next(item for item in arguments if item is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(items) != len(value):
            raise _wrong(where, value, f"a list of {len(items)}")
        return tuple(
            _made(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, items, strict=True))
        )
    _check(value, hint, where)
    return float(value) if hint is float else value


def _made_dataclass(value: Any, hint: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    hints = _hints(hint)
    unknown = value.keys() - hints.keys() - {*hint.REMARKS}
    for keys, problem in ((hints.keys() - value.keys(), "missing"), (unknown, "unknown")):
        if keys:
            names = ", ".join(map(short, sorted(map(str, keys))))
            known = f"{hint.__name__} has the keys {', '.join(hints)}"
            raise InvalidDocument(f"{where}: {problem} keys: {names:.200}", known, "correct the document")
    return hint(**{name: _made(value[name], kind, f"{where}.{name}") for name, kind in hints.items()})


def _check(value: Any, hint: Any, where: str) -> None:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if not (isinstance(value, str) and value in arguments):
            raise _wrong(where, value, "one of " + ", ".join(map(repr, arguments)))
    elif origin in (Union, types.UnionType):
        if value is not None or type(None) not in arguments:
            _check(value, next(item for item in arguments if item is not type(None)), where)
    elif origin is tuple:
        _check_tuple(value, arguments, where)
    elif hint is int:
        if type(value) is not int or not 0 <= value < INTEGERS:
            raise _wrong(where, value, "an integer, 0 or more" + " and below 2**63" * _is_large(value))
    elif hint is float:
        if type(value) not in (int, float) or _is_large(value) or not (isfinite(value) and value >= 0):
            raise _wrong(where, value, "a finite number, 0 or more")
    elif not isinstance(value, hint):
        raise _wrong(where, value, f"a {hint.__name__}")


def _check_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> None:
    if not isinstance(value, tuple):
        raise _wrong(where, value, "a tuple")
    items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
    if len(items) != len(value):
        raise _wrong(where, value, f"a tuple of {len(items)}")
    for i, (item, kind) in enumerate(zip(value, items, strict=True)):
        _check(item, kind, f"{where}[{i}]")


def _is_large(value: Any) -> bool:
    """An integer that is none of ours, and perhaps no float either."""
    return type(value) is int and not -INTEGERS < value < INTEGERS


def _wrong(where: str, value: Any, wanted: str) -> InvalidDocument:
    return InvalidDocument(f"{where} = {short(value)}", f"needed is {wanted}", "correct it")


def short(value: Any) -> str:
    """At most 80 characters; of integers of any size, which Python does not print from 4300 digits on."""
    if _is_large(value):
        return f"an integer of {value.bit_length()} bits"
    return f"{_SHORT.repr(value):.80}"
