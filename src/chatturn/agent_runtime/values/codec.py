"""
Values to agent-runtime's JSON, and back.

One rule holds for every class: a field is a member, named in camelCase; None is left out; a tuple is an array; an event
has its ``type``.  Reading checks each member against the declaration of its field, and ignores unknown members, since
later versions may have more.  A member that is null counts as absent.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Any, Final, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from chatturn.agent_runtime.values.events import (
    EVENT_CLASSES,
    BackendMadeEvent,
    RuntimeMadeEvent,
    RuntimeStreamEvent,
    without_tokens,
)
from chatturn.errors import InvalidRuntimeEvent
from chatturn.jsontext.depth import nests_deeper

__all__ = [
    "MAX_JSON_DEPTH",
    "InvalidRuntimeEvent",
    "decode_runtime_event",
    "encode_runtime_event",
    "event_from_json",
    "json_names",
    "read_value",
    "to_json",
]

MAX_JSON_DEPTH: Final = 64
"""The deepest nesting of arrays and objects in the text of an event."""

Value = TypeVar("Value")

_Reader: TypeAlias = Callable[[Any, str], Any]
"""Takes a JSON value and its path, for errors; returns the field's value."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


# Writing.


def encode_runtime_event(event: RuntimeStreamEvent) -> str:
    """
    Return the JSON text of *event*: one line without a line end, and without the session's resume token.

    Raises:
        ValueError: It holds NaN or an infinity, which JSON cannot carry.
        TypeError: It holds something else that is not JSON.
    """
    return _encode(to_json(without_tokens(event)))


def to_json(value: Any) -> Any:
    """Return *value* as JSON; a value that is JSON already is returned as the same object."""
    if is_dataclass(value):
        return _object_json(value)
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return dict(value) if isinstance(value, Mapping) and not isinstance(value, dict) else value


def _object_json(value: Any) -> dict[str, Any]:
    cls: Any = type(value)
    members: dict[str, Any] = {"type": cls.type} if issubclass(cls, RuntimeMadeEvent | BackendMadeEvent) else {}
    for name, member in json_names(cls).items():
        if (item := getattr(value, name)) is not None:
            members[member] = to_json(item)
    return members


@cache
def json_names(cls: Any) -> Mapping[str, str]:
    """Return the JSON name of each field of *cls*: in camelCase, unless the field's metadata have another."""
    return {item.name: item.metadata.get("json", _camel_case(item.name)) for item in fields(cls)}


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


# Reading.


def decode_runtime_event(text: str) -> RuntimeStreamEvent:
    """
    Read the JSON *text* of an event.

    Raises:
        InvalidRuntimeEvent: *text* is no JSON, nests deeper than `MAX_JSON_DEPTH`, or is no event.
    """
    if nests_deeper(text, MAX_JSON_DEPTH):
        raise InvalidRuntimeEvent("", f"is nested deeper than {MAX_JSON_DEPTH} levels")
    try:
        members = json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise InvalidRuntimeEvent("", "is no JSON") from error
    return event_from_json(members)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def event_from_json(members: object) -> RuntimeStreamEvent:
    """
    Read an event from its JSON.

    Raises:
        InvalidRuntimeEvent: *members* are no event; the error names the member, and what is wrong with it.
    """
    if not isinstance(members, dict):
        raise InvalidRuntimeEvent("", "must be an object")
    kind = members.get("type")
    cls = EVENT_CLASSES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise InvalidRuntimeEvent("type", f"is {kind!r:.60}, which is no type of event")
    return read_value(cls, members)


def read_value(cls: type[Value], members: object, where: str = "") -> Value:
    """
    Read a value of *cls* from its JSON.

    Raises:
        InvalidRuntimeEvent: A member is missing, or is not what the class declares.
    """
    if not isinstance(members, dict):
        raise InvalidRuntimeEvent(where, "must be an object")
    declared: Any = cls
    given: dict[str, Any] = {}
    for name, (member, required, read) in _members(declared).items():
        path = f"{where}.{member}" if where else member
        if members.get(member) is not None:
            given[name] = read(members[member], path)
        elif required:
            raise InvalidRuntimeEvent(path, "is missing")
    return cls(**given)


@cache
def _members(cls: Any) -> Mapping[str, tuple[str, bool, _Reader]]:
    names = json_names(cls)
    return {item.name: (names[item.name], item.default is MISSING, _reader(item.type)) for item in fields(cls)}


def _reader(declared: Any) -> _Reader:
    """Return the reader of a member that is declared as *declared*."""
    if (origin := get_origin(declared)) is not None:
        return _COMPOSED[origin](get_args(declared))
    if is_dataclass(declared):
        cls: Any = declared
        return lambda value, where: read_value(cls, value, where)
    if isinstance(declared, type) and issubclass(declared, StrEnum):
        choice = _choice(tuple(declared))
        return lambda value, where: declared(choice(value, where))
    return _SCALARS[declared]


def _array(read: _Reader) -> _Reader:
    def items(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise InvalidRuntimeEvent(where, "must be an array")
        return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(value))

    return items


def _object(read: _Reader) -> _Reader:
    def members(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise InvalidRuntimeEvent(where, "must be an object")
        return {name: read(item, f"{where}.{name}") for name, item in value.items()}

    return members


def _choice(choices: tuple[str, ...]) -> _Reader:
    def one_of(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in choices:
            raise InvalidRuntimeEvent(where, f"must be one of {', '.join(choices)}")
        return value

    return one_of


def _anything(value: Any, _: str) -> Any:
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRuntimeEvent(where, "must be a string")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise InvalidRuntimeEvent(where, "must be a number")
    return value


def _integer(value: Any, where: str) -> int:
    number = _number(value, where)
    if number != int(number):
        raise InvalidRuntimeEvent(where, "must be a whole number")
    return int(number)


def _truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRuntimeEvent(where, "must be true or false")
    return value


_SCALARS: Final[Mapping[Any, _Reader]] = {
    Any: _anything,
    str: _text,
    float: _number,
    int: _integer,
    bool: _truth,
}

_COMPOSED: Final[Mapping[Any, Callable[[tuple[Any, ...]], _Reader]]] = {
    Literal: _choice,
    Mapping: lambda kinds: _object(_reader(kinds[1])),
    # Unions are with None only; the field's default decides whether the member may be absent.
    # ``Literal[…] | None`` is a `Union`, ``str | None`` a `UnionType`.
    Union: lambda kinds: _reader(kinds[0]),
    UnionType: lambda kinds: _reader(kinds[0]),
    tuple: lambda kinds: _array(_reader(kinds[0])),
}
