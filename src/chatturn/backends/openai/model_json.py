"""JSON from a model's API: read with the leniency that servers need, but never so deep that it kills us."""

import json
import re
from contextlib import suppress
from typing import Any, Final

from chatturn.jsontext.depth import nests_deeper

__all__ = ["MAX_JSON_DEPTH", "parse_frame", "parse_sendable", "parse_values"]

MAX_JSON_DEPTH: Final = 64
"""The most levels of arrays and objects that are read."""

_MAX_SENDABLE_DEPTH: Final = 60
"""4 levels less: a value that is sent on stands inside an event's line or a step's record."""

_DECODER: Final = json.JSONDecoder(parse_constant=lambda _: None)
_BLANKS: Final = re.compile(r"\s*")
_parse: Final = _DECODER.decode


def parse_frame(text: str) -> Any:
    """
    Parse *text*; NaN and the infinities, which are not JSON though some servers write them, become None.

    Raises:
        ValueError: It is not JSON, or nests deeper than `MAX_JSON_DEPTH`.
    """
    _check_depth(text, MAX_JSON_DEPTH)
    return _parse(text)


def parse_values(text: str) -> tuple[list[Any], str]:
    """
    Parse the JSON values with which *text* begins, as `parse_frame` does; return them and what stands behind them.

    Raises:
        ValueError: It begins with none, or nests too deep.
    """
    _check_depth(text, MAX_JSON_DEPTH)
    values: list[Any] = []
    rest = 0
    with suppress(ValueError):
        while (rest := _BLANKS.match(text, rest).end()) < len(text):  # type: ignore[union-attr]  # it matches nothing, too
            value, rest = _DECODER.raw_decode(text, rest)
            values.append(value)
    if not values:
        raise ValueError("no JSON")
    return values, text[rest:]


def parse_sendable(text: str) -> Any:
    """
    Parse *text*, which must be such that a line of a log can carry it.

    Raises:
        ValueError: It is not JSON, nests deeper than 60 levels, or holds a number that is no double, or half of a
            surrogate pair.
    """
    _check_depth(text, _MAX_SENDABLE_DEPTH)
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def _check_depth(text: str, levels: int) -> None:
    if nests_deeper(text, levels):
        raise ValueError(f"JSON that nests deeper than {levels} levels")
