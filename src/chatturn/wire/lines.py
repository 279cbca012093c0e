"""The lines of a log, as a projection reads them.  Pieces of the answer, nearly all lines, are read unparsed."""

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
"""How a keep-alive line begins."""

PING_FRAME: Final = ": ping\n\n"
"""A keep-alive line as every client gets it: a comment."""

QUEUED: Final = "session.run.queued"
"""The type of the line that says for how many turns a queued turn waits; it is stored in no log."""

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
        type: The event's type.
        data: The event's data; empty if it has none.
        seq: Its place in the log; None for a line that is in no log.
        attempt: The number of the attempt that wrote it; None for a line that is in no log.
    """

    type: str
    data: dict[str, Any]
    seq: int | None = None
    attempt: int | None = None


def queued_frame(line: Line) -> str:
    """
    Return the line of a queued turn as every client gets it: a comment.

    A replay does not repeat it, so it must not be a chunk, which clients count.
    """
    return f": queued, {line.data.get('position')} before it\n\n"


def piece_of_answer(line: str) -> str | None:
    """Return the text of a piece of the answer, as JSON without its quotes; None for every other line."""
    if not line.startswith(_PIECE_START):
        return None
    end = line.rfind(_PIECE_END)
    return None if end < _START else line[_START:end]


def attempt_of_piece(line: str) -> int:
    """Return the number of the attempt that wrote *line*, a piece of the answer."""
    return int(line[line.rindex(":") + 1 : -1])


def quoted(text: str) -> str:
    """Return *text* as JSON without its quotes."""
    return encode(text)[1:-1]


def unquoted(pieces: Iterable[str]) -> str:
    """Return the text of *pieces*, the parts of a JSON string without its quotes."""
    text: str = json.loads(f'"{"".join(pieces)}"')
    return text


def add_usage(usage: dict[str, Any], line: Line) -> None:
    """Add one model call's usage to *usage*, the attempt's: tokens add up, any other value replaces the earlier one."""
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
