"""
Tool calls, put together from the pieces in which a model streams them.

A call's first piece has its `id` and name, the others carry its arguments as fragments of one JSON text, and
all name the `index` of the call that they belong to.  Servers are careless about this: some send no index, or
0 for every call, with another `id`; some repeat the name; some send the arguments as an object.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from chatturn.backends.openai.model_json import parse_sendable
from chatturn.events import ChatStreamEvent, tool_call

__all__ = ["ToolCallAssembler", "parse_arguments"]

_MOST_CHARACTERS: Final = 200_000
_MOST_SHOWN: Final = 1_000

_UNNAMED: Final = "tool"


@dataclass(slots=True)
class _Call:
    index: object
    id: str = ""
    name: str = ""
    arguments: Any = None  # if they came as a whole
    fragments: list[str] = field(default_factory=list)

    def event(self, position: int) -> ChatStreamEvent:
        return tool_call(
            tool_call_id=self.id or f"call_{position}",
            tool_name=self.name or _UNNAMED,
            args=parse_arguments("".join(self.fragments) if self.arguments is None else self.arguments),
        )


class ToolCallAssembler:
    """Collects the calls of one answer; each leaves exactly once, when all are complete."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._flushed = 0

    def add(self, pieces: object) -> None:
        """Take the ``tool_calls`` of a delta, or of a whole message; other shapes are ignored."""
        if not isinstance(pieces, list):
            return
        for piece in pieces:
            if isinstance(piece, Mapping):
                self._add_piece(piece)

    def flush(self) -> list[ChatStreamEvent]:
        """Return an event for every call that has not had one, in the order in which they began."""
        events = [call.event(position) for position, call in enumerate(self._calls, self._flushed)]
        self._flushed += len(events)
        self._calls.clear()
        return events

    def _add_piece(self, piece: Mapping[str, Any]) -> None:
        call = self._call_of(piece.get("index"), _text(piece.get("id")))
        function = piece.get("function")
        if not isinstance(function, Mapping):
            return
        call.name = call.name or _text(function.get("name"))
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            call.fragments.append(arguments)
        elif arguments is not None:
            call.arguments = arguments

    def _call_of(self, index: object, id_: str) -> _Call:
        for call in reversed(self._calls):
            same_index = index is None or call.index == index
            if same_index and (not id_ or not call.id or call.id == id_):
                call.id = call.id or id_
                return call
        self._calls.append(_Call(index, id_))
        return self._calls[-1]


def parse_arguments(arguments: Any) -> Any:
    """
    Return *arguments* as JSON that can be sent on: parsed, ``{}`` if empty, or their raw text if malformed.

    NaN, infinities, halves of surrogate pairs and what is longer than 200,000 characters count as malformed, because
    no line of a log can carry them; of what is so long, the beginning is returned.
    """
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    if len(text) > _MOST_CHARACTERS:
        return _text(text[:_MOST_SHOWN] + "…")
    if not text.strip():
        return {}
    try:
        return parse_sendable(text)
    except ValueError:
        return _text(text)


def _text(value: object) -> str:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
