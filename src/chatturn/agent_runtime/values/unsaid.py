"""
Values that no text of others may say: a session's resume token, a sandbox's key, a credential that a user gave.

Whoever is given a credential may quote it, in an error's words or in an answer.  So what comes from there is cleaned by
value before it is told or stored, wherever the value stands in it, and however it is spelled there.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final
from urllib.parse import quote, quote_plus

from chatturn.agent_runtime.values.codec import MAX_JSON_DEPTH
from chatturn.telemetry.redaction import REDACTED

__all__ = ["Unsaid"]

_LEAST: Final = 3
"""Characters: what is shorter is no credential, and stands in any text."""


class Unsaid:
    """The values, and what is left of something without them."""

    __slots__ = ("_spelled",)

    def __init__(self, *values: str | None) -> None:
        self._spelled: dict[str, str] = {}
        for value in values:
            self.add(value)

    def add(self, value: str | None, *, instead: str = REDACTED) -> None:
        """Put *instead* in the place of *value* from now on, too; one of less than 3 characters is none."""
        if value is None or len(value) < _LEAST:
            return
        as_json = (json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
        in_uris = (quote(value), quote(value, safe=""), quote_plus(value))
        spelled = {value, repr(value)[1:-1], *as_json, *in_uris}
        known = {**self._spelled, **dict.fromkeys(spelled, instead)}
        # The longest first: one may be a part of another.
        self._spelled = {each: known[each] for each in sorted(known, key=len, reverse=True)}

    def cleaned(self, value: Any) -> Any:
        """
        Return *value*, a text, JSON or a dataclass of them, without the values; the same object if it has none.

        What is nested deeper than an event may be (`MAX_JSON_DEPTH`) is left out.
        """
        return self._cleaned(value, 0) if self._spelled else value

    def _cleaned(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if depth > MAX_JSON_DEPTH:
            return REDACTED
        if isinstance(value, Mapping):
            found = {self._cleaned(name, depth): self._cleaned(item, depth + 1) for name, item in value.items()}
            return found if found != value else value
        if type(value) in {list, tuple}:
            items = [self._cleaned(item, depth + 1) for item in value]
            return type(value)(items) if any(new is not old for new, old in zip(items, value, strict=True)) else value
        return self._dataclass(value, depth + 1) if is_dataclass(value) and not isinstance(value, type) else value

    def _text(self, text: str) -> str:
        for spelled, instead in self._spelled.items():
            if spelled in text:
                text = text.replace(spelled, instead)
        return text

    def _dataclass(self, value: Any, depth: int) -> Any:
        changed = {
            each.name: new
            for each in fields(value)
            if each.init and (new := self._cleaned(old := getattr(value, each.name), depth)) is not old
        }
        return replace(value, **changed) if changed else value
