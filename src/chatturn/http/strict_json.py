"""A reader of JSON from strangers: refuses what the standard library would accept wrongly, or would crash on."""

import json
from typing import Any, Final, NoReturn

from chatturn.errors import MalformedRequest
from chatturn.http.problems import shown
from chatturn.jsontext.depth import nests_deeper

__all__ = ["MAX_JSON_DEPTH", "read_json_object"]

MAX_JSON_DEPTH: Final = 32
"""The most levels of nested arrays and objects."""


def read_json_object(data: bytes) -> dict[str, Any]:
    """
    Read *data*, which may be hostile: one JSON object in UTF-8 that every JSON reader reads alike.

    Raises:
        MalformedRequest: It is not UTF-8, not JSON, nests deeper than `MAX_JSON_DEPTH`, names a member twice,
            holds a number that no double can hold, or is no object.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise MalformedRequest(f"body is not UTF-8 at byte {exc.start}", field="body") from None
    if nests_deeper(text, MAX_JSON_DEPTH):
        raise MalformedRequest(f"body nests deeper than {MAX_JSON_DEPTH} levels", field="body")
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
        raise MalformedRequest(f"body holds {shown(text)}, which is outside the range of a number", field="body")
    return number


def _no_constant(name: str) -> NoReturn:
    raise MalformedRequest(f"body holds {name}, which is not JSON", field="body")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object_without_twins, parse_float=_finite, parse_constant=_no_constant
)
