"""JSON from strangers: refused where the standard library is lenient, or where it would not survive."""

import json
import re
from typing import Any, Final, NoReturn

from chatturn.errors import MalformedRequest
from chatturn.http.problems import shown

__all__ = ["MAX_JSON_DEPTH", "read_json_object"]

# Levels of arrays and objects.  The scanner of Pyodide 0.28.2 raises no RecursionError: between 3,200 and
# 6,400 levels the whole interpreter dies of "RangeError: Maximum call stack size exceeded".
MAX_JSON_DEPTH: Final = 32

# A whole string, or what opens or closes a level.  Possessive, so that no text makes it go back.
_STRING_OR_BRACKET: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+|[\[{]|[\]}]', re.DOTALL)


def read_json_object(data: bytes) -> dict[str, Any]:
    """
    Read *data*, which may be hostile: one JSON object in UTF-8 that no two readers could read differently.

    Raises:
        MalformedRequest: It is not UTF-8, not JSON, nests deeper than `MAX_JSON_DEPTH`, names a member twice,
            holds a number that no double can hold, or is no object.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise MalformedRequest(f"body is not UTF-8 at byte {exc.start}", field="body") from None
    _check_depth(text)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as exc:
        raise MalformedRequest(
            f"body is not JSON: {exc.msg} at line {exc.lineno} column {exc.colno}", field="body"
        ) from None
    except ValueError:
        raise MalformedRequest("body holds a number with too many digits", field="body") from None
    if not isinstance(value, dict):
        raise MalformedRequest("body must be a JSON object", field="body")
    return value


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_JSON_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        first = text[match.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise MalformedRequest(f"body nests deeper than {MAX_JSON_DEPTH} levels", field="body")
        elif first != '"':
            depth -= 1


def _object_without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twin = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise MalformedRequest(f"body has the member {shown(twin)} twice", field="body")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        raise MalformedRequest(
            f"body holds {shown(text)}, which is outside the range of a number", field="body"
        )
    return number


def _no_constant(name: str) -> NoReturn:
    raise MalformedRequest(f"body holds {name}, which is not JSON", field="body")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object_without_twins, parse_float=_finite, parse_constant=_no_constant
)
