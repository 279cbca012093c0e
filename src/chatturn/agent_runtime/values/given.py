"""Is what was given what was asked for?  Each raises `ValidationError`, which names what is wrong.  Pure."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from chatturn.errors import ValidationError

__all__ = [
    "byte_size",
    "require_callable",
    "require_kind",
    "require_mapping",
    "require_names",
    "require_sequence",
    "require_text",
    "require_whole",
]


def require_kind(value: object, kind: Any, what: str) -> None:
    """Refuse what is not of *kind*, a class."""
    if not isinstance(value, kind):
        raise ValidationError(f"{what} must be of {getattr(kind, '__name__', kind)}, not {type(value).__name__}")


def require_text(value: object, what: str) -> str:
    """Return *value*, a text in UTF-8: half a surrogate pair is none."""
    if not isinstance(value, str):
        raise ValidationError(f"{what} must be a text, not {type(value).__name__}")
    byte_size(value, what)
    return value


def byte_size(text: str, what: str) -> int:
    """Return the size of a text in UTF-8."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise ValidationError(f"{what} has half a surrogate pair, which cannot be stored") from error


def require_mapping(value: object, what: str) -> None:
    """Refuse what is no object by name."""
    if not isinstance(value, Mapping):
        raise ValidationError(f"{what} must be an object, not {type(value).__name__}")


def require_sequence(value: object, kind: Any, what: str) -> None:
    """Refuse what is no list, or holds something that is not of *kind*."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValidationError(f"{what} must be a list, not {type(value).__name__}")
    for number, each in enumerate(value):
        require_kind(each, kind, f"{what}[{number}]")


def require_names(value: object, what: str) -> None:
    """Refuse what is no collection of texts: one text is none, though it can be searched as if it were."""
    if not isinstance(value, Collection) or isinstance(value, str | bytes):
        raise ValidationError(f"{what} must be a collection of names, not {type(value).__name__}")
    for each in value:
        require_text(each, f"one of {what}")


def require_callable(value: object, what: str) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise ValidationError(f"{what} must be a function, not {type(value).__name__}")


def require_whole(value: object, what: str) -> None:
    """Refuse what is no whole number from 0."""
    if type(value) is not int or value < 0:
        raise ValidationError(f"{what} must be a whole number from 0, not {value!r:.40}")
