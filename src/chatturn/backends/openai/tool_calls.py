"""
Tool calls, put together from the pieces in which a model streams them.

By the book a call's first piece has its `id` and name, the others carry its arguments as fragments of one JSON text,
and all name the `index` of the call that they belong to.  Servers keep to little of it: some send no index, or 0 for
every call; no id, another one with every piece, or the same for every call; the name with every piece or in pieces;
arguments as an object, twice encoded, or with a ``{}`` in front.  So one rule decides by what is certain:

    a piece with a name begins a call, if the call of its index has whole arguments, or another name and id

Everything else goes on with the call of its index, or else of its id, or else the latest.  Time is in proportion to
what came.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from chatturn.backends.openai.kept import Keeper
from chatturn.backends.openai.model_json import parse_sendable
from chatturn.events import ChatStreamEvent, tool_call

__all__ = ["ToolCallAssembler", "parse_arguments"]

_MOST_CHARACTERS: Final = 200_000
_MOST_SHOWN: Final = 1_000
_MOST_IN_NAME: Final = 64

_UNNAMED: Final = "tool"
_PLACEHOLDERS: Final = frozenset({"{}", "null"})
_LONGEST_PLACEHOLDER: Final = 4
_NOT_IN_NAMES: Final = re.compile("[^A-Za-z0-9_-]+")
_MARKUP: Final = re.compile(r"<\|.*", re.DOTALL)  # of the model's own format, which a server has left in
_STRUCTURE: Final = re.compile(r'["\\{}\[\]]')
_ARGUMENTS: Final = ("arguments", "parameters", "input")
_OF_A_FUNCTION: Final = frozenset({"name", *_ARGUMENTS})
_OF_A_PIECE: Final = frozenset({"index", "id", "type", "function"}) | _OF_A_FUNCTION


@dataclass(slots=True)
class _Progress:
    """The state of a JSON text that arrives in fragments."""

    depth: int = 0
    in_string: bool = False
    escaped_at: int = -1
    begun: bool = False
    length: int = 0

    def add(self, fragment: str) -> None:
        for match in _STRUCTURE.finditer(fragment):
            at, sign = self.length + match.start(), match.group()
            if self.in_string:
                if at == self.escaped_at:
                    continue
                if sign == "\\":
                    self.escaped_at = at + 1
                elif sign == '"':
                    self.in_string = False
            elif sign == '"':
                self.in_string = self.begun = True
            elif sign != "\\":
                self.depth += 1 if sign in "{[" else -1
                self.begun = True
        self.length += len(fragment)

    @property
    def is_whole(self) -> bool:
        return self.begun and self.depth <= 0 and not self.in_string


@dataclass(slots=True, eq=False)
class _Call:
    delta: int  # in which delta it began
    id: str = ""
    name: str = ""
    fragments: list[str] = field(default_factory=list)
    kept: Keeper = field(default_factory=Keeper)
    _progress: _Progress = field(default_factory=_Progress)
    _followed: int = 0

    def add_arguments(self, arguments: str) -> None:
        if not arguments or self.says(arguments):
            return
        if self.has_placeholder and arguments.lstrip().startswith("{"):
            self.fragments, self._progress, self._followed = [], _Progress(), 0
        self.fragments.append(arguments)

    @property
    def has_placeholder(self) -> bool:
        """Whether its arguments so far are a placeholder, ``{}`` or ``null``, for arguments still to come."""
        few = self.fragments if len(self.fragments) <= _LONGEST_PLACEHOLDER else ()
        return "".join("".join(few).split()) in _PLACEHOLDERS

    def says(self, arguments: str) -> bool:
        """Return whether its arguments are whole, and just these; takes time only if they are as long."""
        return self.is_whole and len(arguments) == self._progress.length and "".join(self.fragments) == arguments

    @property
    def is_whole(self) -> bool:
        """Whether its arguments so far are complete."""
        for fragment in self.fragments[self._followed :]:
            self._progress.add(fragment)
        self._followed = len(self.fragments)
        return self._progress.is_whole

    def value(self) -> Any:
        """Return the arguments; some servers say all of them again, or with each piece all so far."""
        value = parse_arguments("".join(self.fragments))
        return parse_arguments(self.fragments[-1]) if isinstance(value, str) and self._says_all_again() else value

    def _says_all_again(self) -> bool:
        *before, last = self.fragments
        return "".join(before) == last or all(later.startswith(earlier) for earlier, later in pairwise(self.fragments))


class ToolCallAssembler:
    """
    Collects the calls of one answer; each leaves exactly once, when the answer has ended well.

    Args:
        make_id: Makes an id for a call that has none of its own, from its position in the answer; the same each time.
        names: The names of the tools that the model was told of.
    """

    def __init__(self, make_id: Callable[[int], str] = "call_{}".format, names: Collection[str] = ()) -> None:
        self._make_id = make_id
        self._names = frozenset(names)
        self._deltas = 0
        self._calls: list[_Call] = []
        self._by_index: dict[Any, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def is_cut(self) -> bool:
        """Whether a call has no arguments, or not all of them."""
        return not all(call.is_whole for call in self._calls)

    def add(self, pieces: object, *, whole: bool = False) -> None:
        """Take the ``tool_calls`` of a delta, or of a *whole* message, each of which is a call."""
        self._deltas += 1
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, Mapping):
                self._add_piece(piece, whole=whole)

    def flush(self) -> list[ChatStreamEvent]:
        """Return an event for every call, in the order in which they began, each with an id of its own."""
        taken: set[str] = set()
        events = []
        for position, call in enumerate(self._calls):
            call.id = call.id if call.id and call.id not in taken else self._make_id(position)
            taken.add(call.id)
            call.name = self._acceptable(call.name)
            events.append(tool_call(tool_call_id=call.id, tool_name=call.name, args=call.value()))
        return events

    def kept(self) -> list[dict[str, Any]]:
        """Return, for each call, what its pieces say that the API may want back."""
        return [call.kept.members() for call in self._calls]

    def _add_piece(self, piece: Mapping[str, Any], *, whole: bool) -> None:
        function = piece.get("function")
        function = function if isinstance(function, Mapping) else piece
        id_, name = _text(piece.get("id")), _text(function.get("name"))
        arguments = _arguments_in(function)
        call = None if whole else self._call_of(piece.get("index"), id_, name, arguments)
        if call is None:
            if not id_ and not name and not arguments:
                return
            call = _Call(delta=self._deltas)
            self._calls.append(call)
        index = piece.get("index")
        if isinstance(index, int | str):
            self._by_index[index] = call
        if id_:
            call.id = call.id or id_
            self._by_id[id_] = call
        call.name = self._together(call.name, name)
        call.add_arguments(arguments)
        call.kept.add(piece, _OF_A_PIECE)
        if function is not piece:
            more = {key: function[key] for key in function if key not in _OF_A_FUNCTION}
            call.kept.add({"function": more}, _OF_NOTHING)

    def _call_of(self, index: Any, id_: str, name: str, arguments: str) -> _Call | None:
        """Return the call that a piece goes on with; None if it begins one."""
        if not self._calls:
            return None
        latest = self._calls[-1]
        if isinstance(index, int | str):
            call = self._by_index.get(index)
            if call is None:  # some servers count pieces
                return latest if not name and not id_ and (not latest.is_whole or not arguments) else None
        else:
            call = self._by_id.get(id_) or latest
        return None if self._begins(call, id_, name, arguments) else call

    def _begins(self, call: _Call, id_: str, name: str, arguments: str) -> bool:
        other_id = bool(id_ and call.id and id_ != call.id)
        if not name:
            return other_id and call.is_whole and bool(arguments) and not call.has_placeholder
        if call.delta == self._deltas and not (id_ and id_ == call.id):
            return True  # beside each other in one delta: nobody says one name in two pieces there
        if not call.name:
            return other_id
        same = name == call.name and not other_id
        if call.is_whole:
            is_repeat = same and (not arguments or (bool(id_) and (call.has_placeholder or call.says(arguments))))
            return not is_repeat
        if call.fragments:
            return name != call.name
        return other_id or (name != call.name and call.name in self._names)

    def _together(self, name: str, further: str) -> str:
        """Return a name of which a *further* piece came, or the whole again."""
        is_again = further.startswith(name) and name + further not in self._names
        return (further or name) if is_again or not further else name + further

    def _acceptable(self, name: str) -> str:
        """Return *name* as every API takes it back, and as the tool is called, where that can be told."""
        plain = _MARKUP.sub("", name).strip()
        if known := [part for part in re.split(r"[.:/]", plain) if part in self._names]:
            return known[-1]
        return _NOT_IN_NAMES.sub("_", plain)[:_MOST_IN_NAME] or _UNNAMED


def _arguments_in(function: Mapping[str, Any]) -> str:
    """Return the arguments in a piece, or a fragment of them, as JSON."""
    found = next((function[name] for name in _ARGUMENTS if function.get(name) is not None), "")
    return found if isinstance(found, str) else json.dumps(found)


_OF_NOTHING: Final[frozenset[str]] = frozenset()


def parse_arguments(arguments: Any) -> Any:
    """
    Return *arguments* as JSON that can be sent on: parsed, ``{}`` if empty, or their raw text if malformed.

    A text that is itself the JSON of an object is taken for that: some servers encode twice.  NaN, infinities, halves
    of surrogate pairs and what is longer than 200,000 characters count as malformed, because no line of a log can
    carry them; of what is so long, the beginning is returned.
    """
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    if len(text) > _MOST_CHARACTERS:
        return _text(text[:_MOST_SHOWN] + "…")
    if not text.strip():
        return {}
    try:
        value = parse_sendable(text)
    except ValueError:
        return _text(text)
    return _inner(value) if isinstance(value, str) else value


def _inner(text: str) -> Any:
    try:
        value = parse_sendable(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _text(value: object) -> str:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
