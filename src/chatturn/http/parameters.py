"""
The members of queries as data: one row says how a member is read and how ``/openapi.json`` describes it.

As in a body, an unknown member is refused rather than ignored, and each refusal names the member.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final
from urllib.parse import parse_qsl

from chatturn.errors import InvalidField
from chatturn.http.problems import shortened, shown

__all__ = ["Parameter", "Query", "day", "one_of", "opaque", "printable", "read_query", "whole_number"]

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_MOST_MEMBERS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """
    A member of a query, or a header that is read like one.

    Attributes:
        about: What it means, in a phrase without a full stop.
        schema: Its JSON Schema; its ``default`` is the value for a request without the member.
        read: Returns its value, given its text and its name.  Raises `InvalidField`.
    """

    about: str
    schema: Mapping[str, Any]
    read: Callable[[str, str], Any]


Query = Mapping[str, Parameter]
"""The members of a route's query, by name."""


def read_query(query: str, known: Query) -> dict[str, Any]:
    """
    Read a query string: the value of each member that is *known*; None for one that is absent and has no default.

    Raises:
        InvalidField: It does not have the form of a query, or a member is unknown, given twice, or has a wrong value.
    """
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=_MOST_MEMBERS
        )
    except ValueError:
        raise InvalidField("the query is not name=value&… in percent-encoded UTF-8", field="query") from None
    said = dict(pairs)
    for name in said:
        if name not in known:
            text = f"{shown(name)} is not a member of this query; there are {', '.join(sorted(known))}"
            raise InvalidField(text, field=shortened(name))
    if len(said) != len(pairs):
        raise InvalidField("the query names a member twice", field="query")
    return {
        name: each.read(said[name], name) if name in said else each.schema.get("default")
        for name, each in known.items()
    }


def whole_number(about: str, *, least: int = 0, most: int, default: int | None = None) -> Parameter:
    """Make a member that is a decimal number without sign or leading zeros."""

    def read(text: str, name: str) -> int:
        if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
            raise InvalidField(
                f"{name} is {shown(text)}, but must be a whole number from {least} to {most}", field=name
            )
        return int(text)

    schema = {"type": "integer", "minimum": least, "maximum": most}
    return Parameter(about=about, schema=schema if default is None else {**schema, "default": default}, read=read)


def one_of(about: str, values: Sequence[str], *, default: str | None = None) -> Parameter:
    """Make a member that is one of *values*."""

    def read(text: str, name: str) -> str:
        if text not in values:
            raise InvalidField(f"{name} is {shown(text)}, but must be one of {', '.join(values)}", field=name)
        return text

    schema = {"type": "string", "enum": list(values)}
    return Parameter(about=about, schema=schema if default is None else {**schema, "default": default}, read=read)


def day(about: str) -> Parameter:
    """Make a member that is a day: ``YYYY-MM-DD``."""

    def read(text: str, name: str) -> str:
        try:
            if _DAY.fullmatch(text):
                return date.fromisoformat(text).isoformat()
        except ValueError:
            pass
        raise InvalidField(f"{name} is {shown(text)}, but must be a day, YYYY-MM-DD", field=name)

    return Parameter(about=about, schema={"type": "string", "format": "date"}, read=read)


def printable(about: str, *, most: int) -> Parameter:
    """Make a member that is printable text of 1 to *most* characters."""

    def read(text: str, name: str) -> str:
        if not (0 < len(text) <= most and text.isprintable()):
            raise InvalidField(f"{name} must be 1 to {most} printable characters", field=name)
        return text

    schema = {"type": "string", "format": "printable", "minLength": 1, "maxLength": most}
    return Parameter(about=about, schema=schema, read=read)


def opaque(about: str, *, most: int, kind: str) -> Parameter:
    """Make a member whose text only this service can make and read; *kind* names it, as in ``cursor``."""

    def read(text: str, name: str) -> str:
        if len(text) > most:
            raise InvalidField(f"{name} is no {kind} of this service's", field=name)
        return text

    return Parameter(about=about, schema={"type": "string", "format": kind, "maxLength": most}, read=read)
