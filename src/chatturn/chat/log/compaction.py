"""
Logs of turns that are over, stored in their short form and in few rows; see `compact`.

The sweep shortens a log 10 minutes after its turn's last claim, when no live reader needs it.  A worker that dies in
between leaves each page of the log in its long or its short form, and reading gives the same bytes either way.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from chatturn.chat.log.compact import ROW_BYTES, compact, expand, size_of_row
from chatturn.chat.log.sql import Segment, loose_logs, mark_compact, read_segments, rewrite_segments
from chatturn.database.api import Database, Row

__all__ = ["compact_logs"]

_LOGS_AT_ONCE: Final = 20

_QUERIES_OF_A_LOG: Final = 3
"""Queries that one log needs; a log of several pages needs 1 more for each further page."""

_PIECE_CHARACTERS: Final = 200_000
"""Characters of lines that are made short together."""


async def compact_logs(database: Database, room: Callable[[int], bool]) -> int:
    """
    Make the logs short that are due, as many as there is room for; return their number.

    Args:
        database: The database of the logs.
        room: Says whether there is room for that number of further queries.

    Raises:
        StoreError: The database does not answer, or refuses; every log reads as before.
    """
    short = 0
    while room(1 + _QUERIES_OF_A_LOG):
        [due] = await database.batch([loose_logs(_LOGS_AT_ONCE)])
        for row in due.rows:
            if not room(_QUERIES_OF_A_LOG):
                return short
            await _compact_log(database, str(row["run_id"]), str(row["state"]))
            short += 1
        if len(due.rows) < _LOGS_AT_ONCE:
            break
    return short


async def _compact_log(database: Database, run_id: str, state: str) -> None:
    """Make one log short, a page of rows at a time; each page is one transaction, and the last one marks the log."""
    [page] = await database.batch([read_segments(run_id, -1)])
    while page.rows:
        found = [_segment(row) for row in page.rows]
        made = list(_short(_joined(found)))
        rewriting = [] if made == found else rewrite_segments(run_id, state, made)
        *_, page = await database.batch([*rewriting, read_segments(run_id, found[-1].last_seq)])
    await database.batch([mark_compact(run_id, state)])


def _joined(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Yield the segments as they were said, neighbours of one attempt together."""
    pending: list[Segment] = []
    size = 0
    for segment in segments:
        plain = segment._replace(lines=expand(segment.lines))
        follows = not pending or (pending[-1].attempt == plain.attempt and pending[-1].last_seq + 1 == plain.first_seq)
        if pending and (not follows or size + len(plain.lines) > _PIECE_CHARACTERS):
            yield _one(pending)
            pending, size = [], 0
        pending.append(plain)
        size += len(plain.lines)
    if pending:
        yield _one(pending)


def _one(segments: Sequence[Segment]) -> Segment:
    lines = "".join(segment.lines for segment in segments)
    return segments[-1]._replace(first_seq=segments[0].first_seq, lines=lines)


def _short(segments: Iterator[Segment]) -> Iterator[Segment]:
    """Yield the segments in their short form, cut in halves until a row can hold each; one line is never cut."""
    for segment in segments:
        text = compact(segment.lines)
        if segment.first_seq == segment.last_seq or size_of_row(text) <= ROW_BYTES:
            yield segment._replace(lines=text)
        else:
            yield from _short(_halves(segment))


def _halves(segment: Segment) -> Iterator[Segment]:
    lines = [f"{line}\n" for line in segment.lines.split("\n")[:-1]]
    middle = len(lines) // 2
    last = segment.first_seq + middle - 1
    yield segment._replace(last_seq=last, ended=0, lines="".join(lines[:middle]))
    yield segment._replace(first_seq=last + 1, lines="".join(lines[middle:]))


def _segment(row: Row) -> Segment:
    first_seq, last_seq, attempt, ended = (int(row[name] or 0) for name in Segment._fields[:4])
    return Segment(first_seq, last_seq, attempt, ended, str(row["lines"]))
