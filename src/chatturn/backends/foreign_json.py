"""JSON from a model's API: read with the leniency that servers need, but never so deep that it kills us."""

import json
import re
from typing import Any, Final

__all__ = ["MAX_JSON_DEPTH", "parse_frame", "parse_sendable"]

# Levels of arrays and objects.  The scanner of Pyodide 0.28.2 raises no RecursionError: beyond some 3,000
# levels the whole interpreter dies of "RangeError: Maximum call stack size exceeded".
MAX_JSON_DEPTH: Final = 64

# A whole string, or what opens or closes a level.  Possessive, so that no text makes it go back.
_STRING_OR_BRACKET: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+|[\[{]|[\]}]', re.DOTALL)

_parse: Final = json.JSONDecoder(parse_constant=lambda _: None).decode


def parse_frame(text: str) -> Any:
    """
    Parse *text*; NaN and the infinities, which are not JSON though some servers write them, become None.

    Raises:
        ValueError: It is not JSON, or nests deeper than `MAX_JSON_DEPTH`.
    """
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH:
        _check_depth(text)
    return _parse(text)


def parse_sendable(text: str) -> Any:
    """
    Parse *text*, which must be such that a line of a log can carry it.

    Raises:
        ValueError: It is not JSON, nests deeper than `MAX_JSON_DEPTH`, or holds a number that is no double, or
            half of a surrogate pair.
    """
    _check_depth(text)
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def _check_depth(text: str) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        first = text[match.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise ValueError(f"JSON that nests deeper than {MAX_JSON_DEPTH} levels")
        elif first != '"':
            depth -= 1
