"""
One text for each JSON value, the same as JavaScript's, and its hash.

Workers must agree on whether two requests are the same run, and databases of agent-runtime hold
hashes that JavaScript made.  So the text is `JSON.stringify`'s, to the byte: its numbers, its escapes, its
order of members (integer-like names first, by number; then the others, by UTF-16 code unit).  Pure.

A value that JavaScript would lose, change or refuse is a TypeError that names the value and its path:

* NaN and the infinities; an int beyond ±(2**53 - 1), whose last digits JavaScript would round away;
* a member name that is not a str, and two names that are the same text in UTF-16;
* any other type, subclasses included, since they may hold more than their JSON would;
* a value that contains itself, or is nested deeper than `MAX_DEPTH`.

A tuple is an array, as a list is.  Unlike in agent-runtime, a member named ``__proto__`` is an ordinary one.

Source:
    docs/reference/agent-runtime.md, Hashes; ECMA-262, Number::toString, QuoteJSONString and OrdinaryOwnPropertyKeys.
"""

import math
import re
from collections.abc import Iterable
from hashlib import sha256
from json.encoder import encode_basestring
from typing import Any, Final, TypeAlias

__all__ = ["MAX_DEPTH", "canonical_hash", "canonical_json"]

MAX_DEPTH: Final = 128
"""Levels of arrays and objects at most; each level uses two of the interpreter's 1,000 frames."""

_MAX_SAFE_INTEGER: Final = 2**53 - 1
_MAX_ARRAY_INDEX: Final = 2**32 - 2
_SHOWN: Final = 8
_ONLY_STR: Final = {str}
_NOT_IN_CODE_POINT_ORDER: Final = re.compile(r"[0-9]|[^\x00-\x7f]")
_ARRAY_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")

_Path: TypeAlias = tuple[str | int, ...]


def canonical_json(value: object) -> str:
    """
    Return the canonical text of *value*: equal values have the same text, whatever the order of their members.

    Raises:
        TypeError: JSON cannot carry the value; the message names it and its path.
    """
    text = _encode(value, (), set())
    try:
        text.encode()
    except UnicodeEncodeError:
        return _without_surrogates(text)
    return text


def canonical_hash(value: object) -> str:
    """
    Return the SHA-256 of the canonical text: 64 lower-case hex digits.

    Raises:
        TypeError: As for `canonical_json`.
    """
    return sha256(canonical_json(value).encode()).hexdigest()


# Below, *where* is the path to the value, and *open_* holds the ids of the arrays and objects around it.


def _encode(value: Any, where: _Path, open_: set[int]) -> str:
    kind = type(value)
    if kind is str:
        return encode_basestring(value)
    if kind is dict or kind is list or kind is tuple:
        return _encode_container(value, where, open_)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is int and -_MAX_SAFE_INTEGER <= value <= _MAX_SAFE_INTEGER:
        return str(value)
    if kind is float and math.isfinite(value):
        return _number(value)
    raise _unfit(_described(value), where)


def _encode_container(value: Any, where: _Path, open_: set[int]) -> str:
    if id(value) in open_:
        raise _unfit("a value that contains itself", where)
    if len(where) == MAX_DEPTH:
        raise _unfit(f"a value nested deeper than {MAX_DEPTH} levels", where)
    open_.add(id(value))
    parts: list[str] = []
    if type(value) is dict:
        for name in _ordered(value, where):
            item = value[name]  # most members are texts, which need no path
            text = encode_basestring(item) if type(item) is str else _encode(item, (*where, name), open_)
            parts.append(f"{encode_basestring(name)}:{text}")
    else:
        for index, item in enumerate(value):
            parts.append(_encode(item, (*where, index), open_))
    open_.discard(id(value))
    inside = ",".join(parts)
    return f"{{{inside}}}" if type(value) is dict else f"[{inside}]"


def _ordered(members: dict[Any, Any], where: _Path) -> Iterable[str]:
    """Return the names in the order in which JavaScript enumerates them after sorting them."""
    if not {*map(type, members)} <= _ONLY_STR:
        odd = next(name for name in members if type(name) is not str)
        raise _unfit(f"a member whose name is of type {type(odd).__name__}", where)
    if not _NOT_IN_CODE_POINT_ORDER.search("".join(members)):
        return sorted(members)
    ranks = {_rank(name): name for name in members}
    if len(ranks) != len(members):
        raise _unfit("two members whose names are the same text in UTF-16", where)
    return [ranks[rank] for rank in sorted(ranks)]


def _rank(name: str) -> tuple[bool, int, bytes]:
    if _ARRAY_INDEX.fullmatch(name) and int(name) <= _MAX_ARRAY_INDEX:
        return False, int(name), b""
    return True, 0, name.encode("utf-16-be", "surrogatepass")


def _number(value: float) -> str:
    """Write a finite float as JavaScript does: `repr` has the same digits, but other places for exponents."""
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return text.removesuffix(".0") if value else "0"
    sign, digits, power = "-" * (value < 0), mantissa.lstrip("-").replace(".", ""), int(exponent)
    if 0 < power < 21:  # noqa: PLR2004  the rule's own numbers: see Number::toString
        return sign + digits.ljust(power + 1, "0")
    if -7 < power < 0:  # noqa: PLR2004
        return f"{sign}0.{'0' * (-power - 1)}{digits}"
    return f"{mantissa}e{power:+d}"


def _without_surrogates(text: str) -> str:
    """Join the pairs of surrogates in *text* to the characters they mean; escape those without a partner."""
    joined = text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", joined)


def _described(value: object) -> str:
    kind = type(value)
    if kind is float:
        return f"the number {value}"
    return "an int beyond ±(2**53 - 1)" if kind is int else f"a value of type {kind.__name__}"


def _unfit(what: str, where: _Path) -> TypeError:
    shown = "".join(f"[{part!r:.60}]" for part in where[:_SHOWN]) + "…" * (len(where) > _SHOWN)
    return TypeError(f"canonical JSON cannot carry {what}, found at value{shown}")
