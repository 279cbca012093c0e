"""
Logs of old turns are given up for what their replay says: that the turn had started, its answer, and how it ended.

A log is what a client goes on with after a dropped connection; some days later nobody does, while the answer is still
read.  The three lines that are left have the last three seqs of the log, so that every cursor still leads to its end,
and the next version of the turn begins behind it.
"""

import json
from typing import Final

from chatturn.chat.log.compact import ROW_BYTES, compact, expand, size_of_row
from chatturn.chat.log.sql import Segment, give_log_up, keep_log, old_logs
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.turn.finish import started_words
from chatturn.database.api import Database, Row, Statement
from chatturn.events import ChatStreamEvent, encode_lines

__all__ = ["LOGS_AT_ONCE", "give_up_old_logs"]

LOGS_AT_ONCE: Final = 20
"""Logs that one round trip looks at."""

_LINES: Final = 3


async def give_up_old_logs(database: Database, older_than_days: int) -> int:
    """
    Give up some logs of turns that are over and were asked longer ago, the oldest first; return how many were seen.

    A turn that failed keeps its log, since it has no answer; so does one whose log has no more than three lines.

    Raises:
        StoreError: The database does not answer, or refuses; every log reads as before.
    """
    [found] = await database.batch([old_logs(older_than_days, LOGS_AT_ONCE)])
    if found.rows:
        await database.batch([each for row in found.rows for each in _given_up(row)])
    return len(found.rows)


def _given_up(row: Row) -> list[Statement]:
    run_id, state = str(row["run_id"]), str(row["state"])
    left = _left(row)
    return [keep_log(run_id, state)] if left is None else give_log_up(run_id, state, left)


def _left(row: Row) -> Segment | None:
    """Return the three lines that are left of a log, as one segment; None for a log that is kept."""
    if row["result_json"] is None or row["lines"] is None or not row["ended"]:
        return None
    last, attempt = int(row["last_seq"] or 0), int(row["attempt"] or 0)
    first = last - _LINES + 1
    if first <= int(row["log_from"] or 0):
        return None
    identity = ChatTurnIdentity(
        tenant_id=str(row["tenant_id"]),
        session_id=str(row["session_id"]),
        user_id=str(row["user_id"]),
        turn_index=int(row["turn_index"] or 0),
        version=int(row["version"] or 1),
    )
    result = ChatStreamEvent("result", {"finalText": json.loads(str(row["result_json"]))["finalText"]})
    said = encode_lines([*started_words(identity), result], first, attempt)
    ending = expand(str(row["lines"])).rstrip("\n").rpartition("\n")[2]
    text = compact("".join([*said, f"{ending}\n"]))
    if len(said) != _LINES - 1 or size_of_row(text) > ROW_BYTES:
        return None
    return Segment(first, last, attempt, 1, text)
