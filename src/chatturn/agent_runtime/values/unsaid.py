"""
Values that no text of others may say: a session's resume token, a sandbox's key, a credential that a user gave.

Whoever is given a credential may quote it, in an error's words or in an answer.  So what comes from there is cleaned by
value before it is told or stored, wherever the value stands in it, and however it is spelled there.  Of a text that
comes in pieces, the end that may be the beginning of a value is held back until more is known.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final
from urllib.parse import quote, quote_plus

from chatturn.agent_runtime.values.codec import MAX_JSON_DEPTH
from chatturn.telemetry.redaction import REDACTED

__all__ = ["Unsaid", "UnsaidPieces"]

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

    def found(self, text: str, start: int) -> tuple[int, int, str] | None:
        """Return where the first value from *start* on begins and ends, and what stands in its place; None if none."""
        found = self._pattern().search(text, start) if any(each in text for each in self._spelled) else None
        return None if found is None else (*found.span(), self._spelled[found[0]])

    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._spelled)))  # which `re` keeps, for as long as it is asked for

    def begun(self, text: str) -> int:
        """Return where the end of *text* begins that may be the beginning of a value; its length if none may."""
        return min((_overlap(text, each) for each in self._spelled), default=len(text))

    def mostly_begun(self, text: str) -> tuple[int, str] | None:
        """Return where, at the end of *text*, more than half of a value begins, and what stands in its place."""
        halves = [
            (at, instead)
            for each, instead in self._spelled.items()
            if 2 * (len(text) - (at := _overlap(text, each))) > len(each)
        ]
        return min(halves, default=None)

    def _dataclass(self, value: Any, depth: int) -> Any:
        changed = {
            each.name: new
            for each in fields(value)
            if each.init and (new := self._cleaned(old := getattr(value, each.name), depth)) is not old
        }
        return replace(value, **changed) if changed else value


def _overlap(text: str, value: str) -> int:
    """Return where the longest end of *text* begins that *value* begins with, and is longer than."""
    at = text.find(value[0], max(0, len(text) - len(value) + 1))
    while at >= 0 and not value.startswith(text[at:]):
        at = text.find(value[0], at + 1)
    return at if at >= 0 else len(text)


class UnsaidPieces:
    """
    One text that is told in pieces: what may be told of it by now.

    Args:
        unsaid: What it may not say.
        after: What was said before, and is known to have been told.
    """

    def __init__(self, unsaid: Unsaid, after: str = "") -> None:
        self._unsaid = unsaid
        self._held = after
        self._told = len(after)
        """Characters of what is held: they have been told, and may yet turn out to be the beginning of a value."""

    def feed(self, piece: str) -> str:
        """Take the next *piece*; return what can be told, which may be less, or more."""
        text, shown = self._held + piece, list[str]()
        at, begun = 0, self._unsaid.begun(text)
        while (found := self._unsaid.found(text, at)) is not None and found[0] < begun:
            first, end, instead = found
            shown += [text[max(at, self._told) : first], instead if end > self._told else ""]
            at, begun = end, begun if end <= begun else end + self._unsaid.begun(text[end:])
        shown.append(text[max(at, self._told) : begun])
        self._held, self._told = text[begun:], max(0, self._told - begun)
        return "".join(shown)

    def cut(self) -> str:
        """
        Return what was held back, because something else is told next, or nothing more.

        A value in it, and more than half of one, is replaced; if it goes on, so is what is left of it.
        """
        text, told, shown, at = self._held, self._told, list[str](), 0
        while (found := self._unsaid.found(text, at)) is not None:
            first, end, instead = found
            shown += [text[max(at, told) : first], instead if end > told else ""]
            at = end
        rest = text[max(at, told) :]
        if rest and (half := self._unsaid.mostly_begun(text[at:])) is not None:
            rest = text[max(at, told) : at + half[0]] + half[1]
        self._told = len(text)
        return "".join([*shown, rest])

    def told(self) -> str:
        """Return what was told of the beginning of a value."""
        return self._held[: self._told]
