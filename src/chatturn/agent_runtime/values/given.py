"""Checks of arguments; each raises a `ValidationError` that names the argument, *what*, and what is wrong with it."""

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
    """Refuse a *value* that is not of *kind*, a class."""
    if not isinstance(value, kind):
        raise ValidationError(f"{what} must be of {getattr(kind, '__name__', kind)}, not {type(value).__name__}")


def require_text(value: object, what: str) -> str:
    """Return *value*, a text that UTF-8 can encode: it has no half of a surrogate pair."""
    if not isinstance(value, str):
        raise ValidationError(f"{what} must be a text, not {type(value).__name__}")
    byte_size(value, what)
    return value


def byte_size(text: str, what: str) -> int:
    """Return the size of *text* in UTF-8, in bytes."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise ValidationError(f"{what} has half a surrogate pair, which cannot be stored") from error


def require_mapping(value: object, what: str) -> None:
    """Refuse a *value* that is no mapping."""
    if not isinstance(value, Mapping):
        raise ValidationError(f"{what} must be an object, not {type(value).__name__}")


def require_sequence(value: object, kind: Any, what: str) -> None:
    """Refuse a *value* that is no list, or holds something that is not of *kind*."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValidationError(f"{what} must be a list, not {type(value).__name__}")
    for number, each in enumerate(value):
        require_kind(each, kind, f"{what}[{number}]")


def require_names(value: object, what: str) -> None:
    """Refuse a *value* that is no collection of texts; a single text is refused too, although ``in`` works on it."""
    if not isinstance(value, Collection) or isinstance(value, str | bytes):
        raise ValidationError(f"{what} must be a collection of names, not {type(value).__name__}")
    for each in value:
        require_text(each, f"one of {what}")


def require_callable(value: object, what: str) -> None:
    """Refuse a *value* that cannot be called."""
    if not callable(value):
        raise ValidationError(f"{what} must be a function, not {type(value).__name__}")


def require_whole(value: object, what: str) -> None:
    """Refuse a *value* that is no whole number from 0."""
    if type(value) is not int or value < 0:
        raise ValidationError(f"{what} must be a whole number from 0, not {value!r:.40}")
