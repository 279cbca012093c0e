"""
Credentials that no text may quote: a session's resume token, a sandbox's key, a credential that a user gave.

A backend or a hook that is given a credential may quote it, in an error or in an answer.  So everything that it returns
is cleaned before it is told or stored: each spelling of the credential, as in JSON or in a URI, is replaced.  Where a
text comes in pieces, its end is held back while it may be the beginning of a credential.
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
"""The fewest characters of a credential: a shorter value is in many texts by chance."""


class Unsaid:
    """Credentials, and what replaces each of them."""

    __slots__ = ("_spelled",)

    def __init__(self, *values: str | None) -> None:
        self._spelled: dict[str, str] = {}
        for value in values:
            self.add(value)

    def add(self, value: str | None, *, instead: str = REDACTED) -> None:
        """Replace *value* by *instead* from now on; a value of fewer than 3 characters is ignored."""
        if value is None or len(value) < _LEAST:
            return
        as_json = (json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
        in_uris = (quote(value), quote(value, safe=""), quote_plus(value))
        spelled = {value, repr(value)[1:-1], *as_json, *in_uris}
        known = {**self._spelled, **dict.fromkeys(spelled, instead)}
        # The longest first: a value may be a part of another value.
        self._spelled = {each: known[each] for each in sorted(known, key=len, reverse=True)}

    def cleaned(self, value: Any) -> Any:
        """
        Return *value*, a text, JSON or a dataclass of them, with credentials replaced; the same object if it has none.

        What nests deeper than `MAX_JSON_DEPTH` is replaced as a whole.
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
        """Return where the first credential from *start* on begins and ends, and its replacement; None if none is."""
        found = self._pattern().search(text, start) if any(each in text for each in self._spelled) else None
        return None if found is None else (*found.span(), self._spelled[found[0]])

    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._spelled)))  # `re` caches it

    def begun(self, text: str) -> int:
        """Return the index from which *text* may begin a credential; the length of *text* if there is none."""
        return min((_overlap(text, each) for each in self._spelled), default=len(text))

    def mostly_begun(self, text: str) -> tuple[int, str] | None:
        """Return where more than half of a credential begins at the end of *text*, and its replacement; or None."""
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
    """Return where the longest end of *text* begins that is a beginning of *value*, but not all of it."""
    at = text.find(value[0], max(0, len(text) - len(value) + 1))
    while at >= 0 and not value.startswith(text[at:]):
        at = text.find(value[0], at + 1)
    return at if at >= 0 else len(text)


class UnsaidPieces:
    """
    A text that comes in pieces: what of it may be told so far.

    Args:
        unsaid: The credentials that it may not quote.
        after: The text before the first piece, which has been told already.
    """

    def __init__(self, unsaid: Unsaid, after: str = "") -> None:
        self._unsaid = unsaid
        self._held = after
        self._told = len(after)
        """How many characters at the beginning of `_held` have been told; they may still begin a credential."""

    def feed(self, piece: str) -> str:
        """Take the next *piece*; return what can be told now: what was held back, and *piece* or its beginning."""
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
        Return what was held back, because another event is told next, or nothing more.

        A credential in it is replaced, and so is more than half of a credential at its end.  If that credential goes on
        in the next piece, its rest is replaced there.
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
        """Return the end of what was told, if it may be the beginning of a credential."""
        return self._held[: self._told]
