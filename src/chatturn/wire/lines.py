"""The lines of a log, as a projection reads them: nearly all are pieces of the answer, and those are never parsed."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from chatturn.events import MESSAGE_PART

__all__ = [
    "PING_FRAME",
    "PING_START",
    "QUEUED",
    "Line",
    "add_usage",
    "attempt_of_piece",
    "encode",
    "last_seq",
    "piece_of_answer",
    "queued_frame",
    "quoted",
    "read_line",
    "unquoted",
]

PING_START: Final = '{"type":"ping"'
"""How the line begins that says that the connection is alive."""

PING_FRAME: Final = ": ping\n\n"
"""What it is to every client: a comment."""

QUEUED: Final = "session.run.queued"
"""The type of the line that says for how many turns one waits; it is in no log."""

encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

# The line of a piece of the answer, as `chatturn.events.encode_line` writes it.
_PIECE_START: Final = f'{{"type":"{MESSAGE_PART}","data":{{"delta":"'
_PIECE_END: Final = '","part":{"id":"text","type":"text"}},"seq":'
_START: Final = len(_PIECE_START)

_LAST_SEQ: Final = re.compile(r'.*,"seq":([0-9]+),"attempt":[0-9]+\}\n', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Line:
    """
    One line.

    Attributes:
        type: Of its event.
        data: Of its event; empty for none.
        seq: Its place in the log; None for a line that is in no log.
        attempt: Which attempt said it; None for a line that is in no log.
    """

    type: str
    data: dict[str, Any]
    seq: int | None = None
    attempt: int | None = None


def queued_frame(line: Line) -> str:
    """
    Return what a wait is to every client: a comment.

    Where it came again it would not be said again, so it must be nothing that a client counts.
    """
    return f": queued, {line.data.get('position')} before it\n\n"


def piece_of_answer(line: str) -> str | None:
    """Return the text of a piece of the answer, as JSON without its quotes; None for every other line."""
    if not line.startswith(_PIECE_START):
        return None
    end = line.rfind(_PIECE_END)
    return None if end < _START else line[_START:end]


def attempt_of_piece(line: str) -> int:
    """Return which attempt has said a piece of the answer."""
    return int(line[line.rindex(":") + 1 : -1])


def quoted(text: str) -> str:
    """Return *text* as JSON without its quotes."""
    return encode(text)[1:-1]


def unquoted(pieces: Iterable[str]) -> str:
    """Return the text of *pieces*: JSON without quotes."""
    text: str = json.loads(f'"{"".join(pieces)}"')
    return text


def add_usage(usage: dict[str, Any], line: Line) -> None:
    """Add what one model call consumed to the *usage* of the attempt: tokens add up, of the rest the last counts."""
    for name, value in line.data.items():
        known = usage.get(name)
        is_sum = name.startswith("tokens") and isinstance(value, int) and isinstance(known, int)
        usage[name] = known + value if is_sum else value


def read_line(line: str) -> Line:
    """Parse a line of a log."""
    members = json.loads(line)
    data = members.get("data")
    return Line(members["type"], data if isinstance(data, dict) else {}, members.get("seq"), members.get("attempt"))


def last_seq(text: str) -> int | None:
    """Return the seq of the last line of *text* that has one; None if none has."""
    found = _LAST_SEQ.match(text)
    return None if found is None else int(found[1])
