"""The JSON that a run's records hold, and what cannot be in it.  Pure."""

import json
from typing import Any

__all__ = ["json_text"]


def json_text(value: Any, what: str) -> str:
    """
    Encode *value* as JSON.

    Raises:
        TypeError: It is not JSON: NaN, an infinity, a cycle, a type that JSON does not have, a member whose name is
            no str; or half a surrogate pair is in it, for which the database's UTF-8 has no place.  Names *what*.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        if not text.isascii():
            text.encode()
        if isinstance(value, dict | list | tuple):
            _require_names(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{what} is not JSON: {error}"
        raise TypeError(message) from error
    return text


def _require_names(value: Any) -> None:
    """Refuse what the encoder would rename: 1 becomes "1", and takes the place of a member that has that name."""
    rest = [value]
    while rest:
        container = rest.pop()
        if isinstance(container, dict):
            for name in container:
                if not isinstance(name, str):
                    message = f"a member's name is of type {type(name).__name__}"
                    raise TypeError(message)
            container = container.values()
        rest.extend(item for item in container if isinstance(item, dict | list | tuple))
