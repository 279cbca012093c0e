"""
What a model's API says besides text and wants back: reasoning, signatures, thinking blocks, members of its own.

Gemini 3, DeepSeek, Kimi and Claude refuse a conversation whose tool calls come without it; some want it in later turns
as well.  Only the API knows its meaning, so it is joined from the pieces unchanged, and sent back to the same provider
and model only.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["KEPT", "MAX_KEPT_CHARACTERS", "Keeper", "merged"]

KEPT: Final = "kept"
"""The member of an assistant's message, in a request to a backend, that holds what an API wants back."""

MAX_KEPT_CHARACTERS: Final = 500_000
"""The longest JSON that is kept, because it is stored with the model call's step; a longer one is dropped."""

_SAID_OTHERWISE: Final = frozenset(
    {"role", "content", "tool_calls", "function_call", "refusal", "annotations", "citations", "audio", "images"}
    | {"name", "logprobs", "search_results", "obfuscation", "error", "token_ids", "index"}
    | {"finish_reason", "finishReason"}
)
# Members that identify a piece: the same in every piece, so their texts are not joined.
_NAMES: Final = frozenset({"type", "id", "index", "format", "name", "role"})


class Keeper:
    """Collects the members of an answer's pieces, or of one of its calls' pieces."""

    def __init__(self) -> None:
        self._pieces: list[Mapping[str, Any]] = []

    def add(self, members: Mapping[str, Any], without: frozenset[str] = _SAID_OTHERWISE) -> None:
        """Take the members of a piece, except those whose names are in *without*."""
        if kept := {name: value for name, value in members.items() if name not in without and value not in _EMPTY}:
            self._pieces.append(kept)

    def add_parts(self, content: Sequence[Any]) -> None:
        """Take the parts of a content that are not text."""
        if parts := [part for part in content if not isinstance(part, Mapping) or part.get("type") != "text"]:
            self._pieces.append({"content": parts})

    def members(self) -> dict[str, Any]:
        """Return the joined pieces; nothing if they are too long."""
        if not self._pieces:
            return {}
        together: dict[str, Any] = merged(self._pieces)
        try:
            fits = len(json.dumps(together, ensure_ascii=False, allow_nan=False).encode()) <= MAX_KEPT_CHARACTERS
        except ValueError:  # half of a surrogate pair, or NaN
            fits = False
        return together if fits else {}


_EMPTY: Final[tuple[Any, ...]] = (None, "", [], {})


def merged(values: Sequence[Any], name: str = "") -> Any:
    """
    Return the value that *values*, its pieces in order, make together; the time is proportional to their length.

    Texts are joined, objects member by member.  Items of lists with the same ``index``, or neighbours of the same type,
    are joined to one.  Of other values the last counts.
    """
    last = values[-1]
    if len(values) == 1 or name in _NAMES:
        return last
    if all(isinstance(value, str) for value in values):
        return "".join(values)
    if all(isinstance(value, Mapping) for value in values):
        return {key: merged(_of(key, values), key) for key in dict.fromkeys(key for value in values for key in value)}
    if all(isinstance(value, list) for value in values):
        return [merged(group) for group in _groups([item for value in values for item in value])]
    return last


def _of(key: str, values: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [found for value in values if (found := value.get(key)) is not None] or [None]


def _groups(items: Sequence[Any]) -> list[list[Any]]:
    """Join the items that are pieces of one item."""
    groups: list[list[Any]] = []
    by_index: dict[Any, list[Any]] = {}
    for item in items:
        index = item.get("index") if isinstance(item, Mapping) else None
        if type(index) is int:
            if index not in by_index:
                groups.append(by_index.setdefault(index, []))
            by_index[index].append(item)
        elif groups and _goes_on(groups[-1][-1], item):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _goes_on(before: Any, item: Any) -> bool:
    if not isinstance(before, Mapping) or not isinstance(item, Mapping):
        return False
    if before.get("signature") or "data" in before:  # it has ended; what is encrypted comes as a whole
        return False
    return "index" not in before and all(before.get(name) == item.get(name) for name in ("type", "id"))
