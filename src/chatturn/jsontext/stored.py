"""The JSON that a run's records hold, and what cannot be in it.  Pure."""

import json
from typing import Any

__all__ = ["json_text"]


def json_text(value: Any, what: str) -> str:
    """
    Encode *value* as JSON.

    Raises:
        TypeError: *value* is not JSON (NaN, an infinity, a cycle, a foreign type, a member name that is no str), or it
            holds a lone surrogate, which UTF-8 cannot encode.  The message names *what*.
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
    """Refuse member names that are no str: the encoder would write 1 as "1", which may be another member's name."""
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
