"""
The log of a turn, also of one that agent-runtime has answered, which has none: it is made of the answer.

Such a log has three lines: that the turn has started, its answer, and how it ended.  They never change, so they are
numbered like the lines of any log, from 0, and a reader may come back with a cursor.
"""

from typing import Final

from chatturn.chat.log.pages import LogPage, load_page
from chatturn.chat.log.sql import read_page
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.thread.their_sql import Theirs, read_theirs
from chatturn.chat.thread.version_sql import read_versions
from chatturn.chat.turn.finish import ending_words, failure_words, started_words, unlogged
from chatturn.database.api import Database, Row
from chatturn.durable.ends import Cancelled, Completed
from chatturn.durable.records import RunStatus
from chatturn.errors import TurnAborted, error_class
from chatturn.events import ChatStreamEvent, encode_lines

__all__ = ["counts_there", "load_log"]

_ATTEMPT: Final = 1


async def load_log(database: Database, identity: ChatTurnIdentity, after: int, theirs: Theirs | None) -> LogPage | None:
    """
    Read a page of a turn's log, in one round trip; None if there is no such turn.

    Args:
        database: Where the turn is.
        identity: The turn.
        after: The seq after which to read; -1 for all.
        theirs: Where agent-runtime may have the turn; None not to look there.
    """
    run_id = turn_run_id(identity)
    if theirs is None:
        return await load_page(database, run_id, after)
    ours, found = await database.batch([read_page(run_id, after), read_theirs(identity, theirs)])
    if ours.rows:
        return LogPage.of(ours.rows, after)
    return _page(identity, found.rows[0], after) if found.rows else None


async def counts_there(database: Database, identity: ChatTurnIdentity, theirs: Theirs | None) -> bool:
    """Say whether it is agent-runtime's version, and no other counts; once another does, it never does again."""
    if theirs is None:
        return False
    [found] = await database.batch([read_versions(identity, theirs)])
    return any(row["version"] == 1 and row["user_message"] is None and row["counts"] for row in found.rows)


def _page(identity: ChatTurnIdentity, row: Row, after: int) -> LogPage:
    """Make the page of a turn that is over; of one that is being answered, an empty one."""
    reason, lease_left_ms = row["cancelled"], max(0, int(row["lease_left_ms"] or 0))
    if reason is not None:
        return _told(identity, row, after, Cancelled(str(row["text"] or ""), str(reason)))
    if row["text"] and (row["status"] == RunStatus.COMPLETED or not lease_left_ms):
        return _told(identity, row, after, Completed(str(row["text"])))
    if lease_left_ms:
        return _made(row, RunStatus.RUNNING, lease_left_ms=lease_left_ms, last=after)
    return _failed(identity, row, after)


def _told(identity: ChatTurnIdentity, row: Row, after: int, end: Completed | Cancelled) -> LogPage:
    result = [ChatStreamEvent("result", {"finalText": end.text})]
    lines = encode_lines([*started_words(identity), *result, *ending_words(identity, end)], 0, _ATTEMPT)
    text, last = "".join(lines[after + 1 :]), len(lines) - 1
    return _made(row, RunStatus.COMPLETED, text=text, ends=last, last=max(after, last), closed=True,
                 cancelled=isinstance(end, Cancelled))  # fmt: skip


def _failed(identity: ChatTurnIdentity, row: Row, after: int) -> LogPage:
    """Make the page of a turn that failed, or whose worker is lost: who sends the request again has it answered."""
    kind = TurnAborted if row["status"] == RunStatus.RUNNING else error_class(row["outcome"])  # type: ignore[arg-type]
    words = [*started_words(identity), *failure_words(identity, kind)]
    return _made(row, RunStatus.FAILED, text=unlogged(words, _ATTEMPT), last=after, closed=True)


def _made(
    row: Row,
    status: RunStatus,
    *,
    text: str = "",
    ends: int = -1,
    last: int = -1,
    closed: bool = False,
    cancelled: bool = False,
    lease_left_ms: int = 0,
) -> LogPage:
    return LogPage(
        status=status,
        attempt=max(_ATTEMPT, int(row["epoch"] or 0)),
        cancelled=cancelled,
        lease_left_ms=lease_left_ms,
        begins=0,
        ends=ends,
        furthest=ends,
        text=text,
        last=last,
        closed=closed,
        outcome=None if row["outcome"] is None else str(row["outcome"]),
        created_at=str(row["created_at"]),
    )
