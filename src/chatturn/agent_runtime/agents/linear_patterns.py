r"""
Regular expressions whose search takes time in proportion to the text, whatever the pattern and the text are.

Python's own `re` backtracks: ``(a+)+$`` takes 2^n steps for n letters, and ``.*x`` n^2.  Patterns here
come from an agent's profile and texts from its users, so neither may decide how long a search takes.  A pattern is
parsed by `re`'s own parser and run as an automaton that looks at each character once.  What an automaton cannot do
(look-around, back-references, atomic groups) is refused when the pattern is compiled.

    (a|b)+c      ─▶  nodes: split ─▶ char ─▶ …      one node for each character of the pattern, repeats written out
    nodes        ─▶  ways: which may follow which   all nodes at once, as the bits of an int
    search       ─▶  states: sets of nodes          made when they are first reached, and kept

``\B`` does not match in an empty text, on every version of Python: `re` behaves so up to 3.13, the Worker's version.

Source:
    R. Cox, "Regular Expression Matching Can Be Simple And Fast", 2007: swtch.com/~rsc/regexp/regexp1.html.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Final, TypeAlias

from chatturn.errors import ValidationError

__all__ = ["MAX_NODES", "MAX_WAYS", "LinearPattern"]

MAX_NODES: Final = 2_000
"""The most nodes of one pattern's automaton, with repeats written out: ``x{500}`` has 500."""

MAX_WAYS: Final = 200
"""
The most ways of one pattern's automaton (`_Ways`), which bound the work for each character of a text.

All nodes that are followed by a node at the same distance are 1 way, and so are all that are followed by the same
node: ``(?:ab){600}`` has 1 way, ``[ab]{0,600}c`` 2; 100 parts that may each be left out (``a?b?c?…``) have about 100.
"""

_MAX_PAIRS: Final = 100_000
"""The most pairs of a node and a node that may follow it, which bound the time to compile a pattern."""

_MAX_SETS: Final = 300
"""The most sets of characters in one pattern, such as ``x`` and ``[a-z]``; bounds the time for a new character."""

# Limits of one pattern's caches, together about 2 MB.  A full cache is emptied, and filled again during the search.
_MAX_STATES: Final = 2_000
_MAX_STEPS: Final = 8_000
_MAX_CHARACTERS: Final = 1_000

_PARSER: Final[Any] = import_module("re._parser")  # the standard library's; typeshed does not declare it

_CATEGORIES: Final = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_TYPES: Final = re.ASCII | re.UNICODE  # a part of a pattern has one of these flags: adding one removes the other
_OF_A_CHARACTER: Final = re.IGNORECASE | re.ASCII | re.DOTALL

# What is beside a position: the text's edge, a line end as its last character, another line end, another character.
_EDGE, _LAST_LINE_END, _LINE_END, _OTHER = "", "\n$", "\n", "."

_Node: TypeAlias = int
_ACCEPT: Final[_Node] = 0
_ACCEPTED: Final = 1 << _ACCEPT


@dataclass(frozen=True, slots=True)
class _Character:
    """A node that takes one character."""

    fits: re.Pattern[str]
    following: _Node


@dataclass(frozen=True, slots=True)
class _Split:
    """A node that takes no character, and goes on in several ways."""

    following: list[_Node]


@dataclass(frozen=True, slots=True)
class _Position:
    """A node that takes no character, and goes on if `holds` is true of the characters before and after it."""

    holds: Callable[["_Side", "_Side"], bool]
    following: _Node


@dataclass(frozen=True, slots=True)
class _Side:
    """What decides whether a position holds beside a character."""

    kind: str
    is_word: bool = False
    is_ascii_word: bool = False


_OUTSIDE: Final = _Side(_EDGE)
_ANYWHERE: Final = _Side(_OTHER)


@dataclass(frozen=True, slots=True, eq=False)
class _Class:
    """Characters that a pattern treats alike: the nodes that can take them, and what they are beside a position."""

    fitting: int
    side: _Side


@dataclass(slots=True, eq=False)
class _State:
    """A state of a search: the nodes that took the latest character, its side, and the next state for each class."""

    taken: int
    before: _Side
    by_class: dict[_Class, "_State"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ways:
    """
    Which nodes may take the next character, after which nodes; a set of nodes is an int with a bit for each node.

    Attributes:
        first: The nodes that may take the first character of a match.
        down: Pairs of a set and a distance: node n of the set may be followed by node n - distance.
        up: Pairs of a set and a distance: node n of the set may be followed by node n + distance.
        jumps: Pairs of two sets: each node of the first set may be followed by each node of the second.
    """

    first: int
    down: tuple[tuple[int, int], ...]
    up: tuple[tuple[int, int], ...]
    jumps: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, first: int, pairs: list[tuple[_Node, _Node]]) -> "_Ways":
        """Group *pairs* of a node and a node that may follow it into few sets."""
        by_distance = Counter(node - following for node, following in pairs)
        by_following = Counter(following for _, following in pairs)
        shifted, jumping, merged = defaultdict[int, int](int), defaultdict[int, int](int), defaultdict[int, int](int)
        for node, following in pairs:
            if by_distance[node - following] >= by_following[following]:
                shifted[node - following] |= 1 << node
            else:
                jumping[following] |= 1 << node
        for following, nodes in jumping.items():
            merged[nodes] |= 1 << following
        return cls(
            first=first,
            down=tuple((nodes, by) for by, nodes in shifted.items() if by >= 0),
            up=tuple((nodes, -by) for by, nodes in shifted.items() if by < 0),
            jumps=tuple(merged.items()),
        )

    def __len__(self) -> int:
        """Return how many sets there are."""
        return len(self.down) + len(self.up) + len(self.jumps)

    def following(self, taken: int) -> int:
        """Return the nodes that may take the next character: after the nodes *taken*, or as the first of a match."""
        found = self.first
        if taken:
            for nodes, by in self.down:
                found |= (taken & nodes) >> by
            for nodes, by in self.up:
                found |= (taken & nodes) << by
            for nodes, those in self.jumps:
                if taken & nodes:
                    found |= those
        return found


class LinearPattern:
    """
    A pattern that is searched for in linear time.

    Args:
        source: The pattern in the syntax of `re`.
        flags: The flags of `re`.

    Raises:
        ValidationError: `re` does not understand it, it has more than `MAX_NODES` nodes or `MAX_WAYS` ways, or it has
            look-around, a back-reference, a condition, or an atomic or possessive part.
    """

    def __init__(self, source: str, flags: int = 0) -> None:
        try:
            parsed = _PARSER.parse(source, int(flags) & ~re.DEBUG)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValidationError(f"the pattern {source!r:.200} is none: {error}") from error
        self._nodes: list[_Character | _Split | _Position] = [_Split([])]
        self._ways: dict[tuple[_Side, _Side], _Ways] = {}
        try:
            self._entry = self._build(parsed, parsed.state.flags, _ACCEPT)
            self._require_few_ways()
        except RecursionError as error:
            raise ValidationError(f"the pattern {source!r:.200} is nested too deep") from error
        except _Refused as error:
            raise ValidationError(f"the pattern {source!r:.200} {error}") from error
        self._looks_around = any(isinstance(node, _Position) for node in self._nodes)
        self._fitting: dict[re.Pattern[str], int] = defaultdict(int)
        for number, node in enumerate(self._nodes):
            if isinstance(node, _Character):
                self._fitting[node.fits] |= 1 << number
        if len(self._fitting) > _MAX_SETS:
            raise ValidationError(
                f"the pattern {source!r:.200} tells more than {_MAX_SETS} sets of characters apart: "
                "say it in several patterns"
            )
        self._found, self._failed = _State(0, _OUTSIDE), _State(0, _OUTSIDE)
        self._states: dict[tuple[int, _Side], _State] = {}
        self._classes: dict[tuple[int, _Side], _Class] = {}
        self._by_character: dict[str, _Class] = {}
        self._steps = 0

    def search(self, text: str) -> bool:
        """Say whether the pattern matches anywhere in *text*; calls share nothing but caches."""
        state, found = self._state(0, _OUTSIDE), self._found
        body, last = (text[:-1], _LAST_LINE_END) if text.endswith("\n") else (text, _EDGE)
        known = self._by_character
        for character in body:
            character_class = known.get(character) or self._class_of(character)
            state = state.by_class.get(character_class) or self._step(state, character_class)
            if state is found:
                return True
        if last is _LAST_LINE_END:
            state = self._step(state, self._class_of(last))
        return state is found or self._step(state, self._class_of(_EDGE)) is found

    # Searching.

    def _step(self, state: _State, character: _Class) -> _State:
        if state is self._found:
            return state
        following = state.by_class.get(character)
        if following is None:
            following = self._follow(state, character)
            if self._steps >= _MAX_STEPS:
                self._forget()
            self._steps += 1
            state.by_class[character] = following
        return following

    def _forget(self) -> None:
        """Empty the caches, and cut the links between the old states, so that none keeps the others in memory."""
        for old in self._states.values():
            old.by_class.clear()
        for known in (self._states, self._classes, self._by_character):
            known.clear()
        self._steps = 0

    def _follow(self, state: _State, character: _Class) -> _State:
        may_follow = self._ways_between(state.before, character.side).following(state.taken)
        if may_follow & _ACCEPTED:
            return self._found
        if character.side.kind is _EDGE:
            return self._failed
        return self._state(may_follow & character.fitting, character.side if self._looks_around else _OUTSIDE)

    def _ways_between(self, before: _Side, after: _Side) -> _Ways:
        sides = (before, after) if self._looks_around else (_OUTSIDE, _OUTSIDE)
        ways = self._ways.get(sides)
        if ways is None:
            ways = self._ways[sides] = self._find_ways(lambda node: node.holds(before, after))
        return ways

    def _require_few_ways(self) -> None:
        """Refuse a pattern that has more than `MAX_WAYS` ways when every position holds."""
        if len(self._find_ways(lambda _: True)) > MAX_WAYS:
            raise _Refused(f"has more than {MAX_WAYS} ways to go on: leave less out, or say it in several patterns")

    def _find_ways(self, holds: Callable[[_Position], bool]) -> _Ways:
        reachable: dict[_Node, list[_Node]] = {}
        pairs: list[tuple[_Node, _Node]] = []
        for number, node in enumerate(self._nodes):
            if isinstance(node, _Character):
                if node.following not in reachable:
                    reachable[node.following] = self._reachable(node.following, holds)
                pairs += ((number, each) for each in reachable[node.following])
                if len(pairs) > _MAX_PAIRS:
                    raise _Refused("has too many ways to go on: repeat less, or say it in several patterns")
        return _Ways.of(sum(1 << each for each in self._reachable(self._entry, holds)), pairs)

    def _reachable(self, node: _Node, holds: Callable[[_Position], bool]) -> list[_Node]:
        """Return the nodes that may take a character from *node* on, and `_ACCEPT` if the match may end there."""
        reached, found, those = set[_Node](), [node], list[_Node]()
        while found:
            number = found.pop()
            if number in reached:
                continue
            reached.add(number)
            match self._nodes[number]:
                case _Split(following=following):
                    found += following
                case _Position() as position:
                    found += [position.following] if holds(position) else []
                case _Character():
                    those.append(number)
        return [*those, _ACCEPT] if _ACCEPT in reached else those

    def _state(self, taken: int, before: _Side) -> _State:
        state = self._states.get((taken, before))
        if state is None:
            if len(self._states) >= _MAX_STATES:
                self._forget()
            state = self._states[taken, before] = _State(taken, before)
        return state

    def _class_of(self, character: str) -> _Class:
        known = self._by_character.get(character)
        if known is not None:
            return known
        if len(self._by_character) >= _MAX_CHARACTERS:
            self._by_character.clear()
        shown = character[:1]
        fitting = sum(nodes for fits, nodes in self._fitting.items() if shown and fits.match(shown))
        side = _OUTSIDE if character is _EDGE else _side_of(character)
        if not self._looks_around and character is not _EDGE:
            side = _ANYWHERE
        found = self._classes.get((fitting, side))
        if found is None:
            found = self._classes[fitting, side] = _Class(fitting, side)
        self._by_character[character] = found
        return found

    # Compiling.

    def _add(self, node: _Character | _Split | _Position) -> _Node:
        if len(self._nodes) >= MAX_NODES:
            raise _Refused(f"has more than {MAX_NODES} nodes: repeat less, or say it in several patterns")
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _build(self, items: Any, flags: int, following: _Node) -> _Node:
        """Add the nodes of a sequence that goes on at *following*; return the first of them."""
        for operator, value in reversed(list(items)):
            following = self._item(str(operator), value, flags, following)
        return following

    def _item(self, operator: str, value: Any, flags: int, following: _Node) -> _Node:
        match operator, value:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN", _:
                return self._add(_Character(_one_character(operator, value, flags), following))
            case "BRANCH", (_, ways):
                return self._add(_Split([self._build(way, flags, following) for way in ways]))
            case "SUBPATTERN", (_, added, removed, inner):
                kept = flags & ~_TYPES if added & _TYPES else flags
                return self._build(inner, (kept | added) & ~removed, following)
            case "MAX_REPEAT" | "MIN_REPEAT", (least, most, inner):
                return self._repeat(inner, least, most, flags, following)
            case "AT", _:
                return self._add(_Position(_holding(str(value), flags), following))
            case _:
                raise _Refused("cannot be searched in linear time: it has look-around, a back-reference or the like")

    def _repeat(self, inner: Any, least: int, most: Any, flags: int, following: _Node) -> _Node:
        if most is _PARSER.MAXREPEAT:
            loop = _Split([following])
            entry = self._add(loop)
            loop.following.append(self._build(inner, flags, entry))
        else:
            entry = following
            for _ in range(most - least):
                entry = self._add(_Split([following, self._build(inner, flags, entry)]))
        for _ in range(least):
            before, entry = entry, self._build(inner, flags, entry)
            if entry is before:  # the repeated part adds no node, however often it is repeated
                break
        return entry


class _Refused(Exception):
    """The pattern cannot be run in linear time; says why."""


def _side_of(character: str) -> _Side:
    kind = {_LINE_END: _LINE_END, _LAST_LINE_END: _LAST_LINE_END}.get(character, _OTHER)
    is_word = character.isalnum() or character == "_"
    return _Side(kind, is_word, is_word and character.isascii())


@cache
def _compiled(source: str, flags: int) -> re.Pattern[str]:
    return re.compile(source, flags)


def _one_character(operator: str, value: Any, flags: int) -> re.Pattern[str]:
    """Return a pattern of `re` for one character, so that `re` decides on classes and on upper and lower case."""
    match operator:
        case "ANY":
            source = "."
        case "LITERAL":
            source = _spelled(value)
        case "NOT_LITERAL":
            source = f"[^{_spelled(value)}]"
        case _:
            source = f"[{''.join(_member(str(kind), item) for kind, item in value)}]"
    return _compiled(source, flags & _OF_A_CHARACTER)


def _member(kind: str, item: Any) -> str:
    match kind:
        case "NEGATE":
            return "^"
        case "LITERAL":
            return _spelled(item)
        case "RANGE":
            return f"{_spelled(item[0])}-{_spelled(item[1])}"
        case _:
            return _CATEGORIES[str(item)]


def _spelled(code_point: int) -> str:
    return f"\\U{code_point:08x}"


def _holding(kind: str, flags: int) -> Callable[[_Side, _Side], bool]:
    """Return the condition under which a position of *kind* holds between two sides."""
    many_lines, ascii_only = bool(flags & re.MULTILINE), bool(flags & re.ASCII)

    def at_boundary(before: _Side, after: _Side) -> bool:
        if ascii_only:
            return before.is_ascii_word != after.is_ascii_word
        return before.is_word != after.is_word

    conditions: dict[str, Callable[[_Side, _Side], bool]] = {
        "AT_BEGINNING": lambda before, _: before.kind is _EDGE or (many_lines and before.kind is not _OTHER),
        "AT_BEGINNING_STRING": lambda before, _: before.kind is _EDGE,
        "AT_END": lambda _, after: after.kind in {_EDGE, _LAST_LINE_END} or (many_lines and after.kind is _LINE_END),
        "AT_END_STRING": lambda _, after: after.kind is _EDGE,
        "AT_BOUNDARY": at_boundary,
        "AT_NON_BOUNDARY": lambda before, after: (
            not at_boundary(before, after) and not before.kind == after.kind == _EDGE  # an empty text has none
        ),
    }
    return conditions[kind]
