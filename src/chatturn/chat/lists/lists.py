"""Lists for people: the messages of a session, and where its turns and those of a whole tenant stand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from chatturn.chat.lists import sql
from chatturn.chat.lists.revisions import NOT_BEGUN, tag_of
from chatturn.chat.requests import CANCELLED
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.thread.session_sql import read_revision
from chatturn.database.api import Database, Row
from chatturn.durable.records import RunPage, RunQuery, RunRecord, RunStatus
from chatturn.durable.rows import run_from_row
from chatturn.durable.run_lists import decode_cursor, encode_cursor, list_runs

__all__ = [
    "RUN_STATUSES",
    "MessagePage",
    "MessageQuery",
    "TurnPage",
    "TurnQuery",
    "TurnRow",
    "has_asked",
    "list_messages",
    "list_turns",
]

ORPHANED: Final = "orphaned"
UNDELIVERED: Final = "undelivered"

RUN_STATUSES: Final = ("pending", "running", ORPHANED, "suspended", "completed", CANCELLED, "failed", UNDELIVERED)
"""
The statuses by which turns may be listed.

A turn is orphaned if it is running but its worker's lease lapsed, and undelivered if a hook call that must still
happen has failed, or was given up.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageQuery:
    """
    Which messages of a session to list.

    Attributes:
        before: Only turns before this index; None for the latest.
        limit: The most turns whose messages are on a page; fewer where they are long.
    """

    before: int | None
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagePage:
    """
    A stretch of a session.

    Attributes:
        messages: The messages of finished turns, in their order.
        open_turns: Turns that have no answer yet, in their order; on the latest page only.
        next: The `MessageQuery.before` of the page with older messages; None if there is none.
        revision: The session's revision, see `chatturn.chat.thread.session_sql`; None where it is not on record.
        tag: The session's tag, see `chatturn.chat.lists.revisions`; None where the revision is not on record.
    """

    messages: Sequence[Mapping[str, Any]]
    open_turns: Sequence[Mapping[str, Any]]
    next: int | None
    revision: int | None = None
    tag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnQuery:
    """
    Which turns to list.

    Attributes:
        status: One of `RUN_STATUSES`, or None for any.
        tenant_id: Only this tenant's turns; None for every tenant's.
        user_id: Only turns of sessions that this user may see; None for all.
        limit: The most turns on a page.
        after: The `next` of the previous page.
    """

    status: str | None
    tenant_id: str | None
    limit: int
    after: str | None
    user_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRow:
    """
    A turn as an operator sees it.

    Attributes:
        run: The turn's run.
        turn: The turn's row, and its hook calls that have not succeeded; None for a run that is gone by now.  For a run
            that is no turn of ours all columns of the turn are null.
    """

    run: RunRecord
    turn: Row | None

    @property
    def undelivered(self) -> Sequence[Mapping[str, Any]]:
        """Its hook calls that have not succeeded: which, how often they failed, when they are made again."""
        calls: list[dict[str, Any]] = [] if self.turn is None else json.loads(str(self.turn["hooks_json"]))
        return calls

    @property
    def status(self) -> str:
        """Where it stands, as in `RUN_STATUSES`."""
        if self.turn is not None and self.turn["cancelled_at"] is not None:
            return CANCELLED
        return ORPHANED if self.turn is not None and self.turn["orphaned"] else str(self.run.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPage:
    """
    One page of a list of turns.

    Attributes:
        turns: They may be fewer than asked for, or none, before the list's end.
        next: Where the next page begins, or None at the list's end.
    """

    turns: Sequence[TurnRow]
    next: str | None


async def list_messages(database: Database, tenant_id: str, session_id: str, query: MessageQuery) -> MessagePage:
    """Return a stretch of a session's messages, in one round trip."""
    read = [
        read_revision(tenant_id, session_id),
        sql.read_messages(tenant_id, session_id, query.before, query.limit),
    ]
    if query.before is None:
        read.append(sql.read_open_turns(tenant_id, session_id))
    session, found, *unanswered = [outcome.rows for outcome in await database.batch(read)]
    turns = sorted({int(row["turn_index"] or 0) for row in found})
    fitting = {int(row["turn_index"] or 0) for row in found if row["content"] is not None}
    kept = [turn for turn in turns[-query.limit :] if turn in fitting]
    not_begun = not session and not found and query.before is None and not any(unanswered)
    return MessagePage(
        messages=[_message(row) for row in reversed(found) if int(row["turn_index"] or 0) in kept],
        open_turns=[_open_turn(row) for rows in unanswered for row in reversed(rows)],
        next=kept[0] if len(turns) > len(kept) else None,
        revision=int(session[0]["revision"] or 0) if session else 0 if not_begun else None,
        tag=NOT_BEGUN if not_begun else tag_of(session),
    )


async def has_asked(database: Database, identity: ChatTurnIdentity, questions: Sequence[str]) -> bool:
    """
    Say whether these are what the user has asked in a session before a turn, each at its index.

    A question that is being answered counts like an answered one; a question whose turn failed counts unless another
    answer is in its place.  Otherwise the same request, sent again, would find another thread.
    """
    if len(questions) != identity.turn_index:
        return False
    read = sql.read_questions(identity, list(map(len, questions)))
    stored, opened = await database.batch([read, sql.read_open_turns(identity.tenant_id, identity.session_id)])
    asked = {row["turn_index"]: row["content"] for row in stored.rows}
    for row in opened.rows:
        if row["status"] != RunStatus.FAILED or row["turn_index"] not in asked:
            asked[row["turn_index"]] = row["user_message"]
    return all(asked.get(index) == question for index, question in enumerate(questions))


async def list_turns(database: Database, project_id: str, query: TurnQuery) -> TurnPage:
    """
    Return one page of a project's turns, the latest created first, in two round trips.

    With a user, only turns of sessions that are the user's are on the page.

    Raises:
        InvalidField: The cursor is not one of this list's.
    """
    if query.status == UNDELIVERED:
        page = await _undelivered(database, project_id, query)
    else:
        page = await list_runs(database, _run_query(project_id, query))
    run_ids = [run.run_id for run in page.runs]
    [found] = await database.batch([sql.read_turns(run_ids, owners=query.user_id is not None)])
    rows = {row["run_id"]: row for row in found.rows}
    if query.user_id is not None:
        owners = {run_id: row["owner_id"] for run_id, row in rows.items()}
        page = replace(page, runs=[run for run in page.runs if owners.get(run.run_id) == query.user_id])
    turns = [TurnRow(run=run, turn=rows.get(run.run_id)) for run in page.runs]
    return TurnPage(turns=[turn for turn in turns if query.status in {None, UNDELIVERED, turn.status}], next=page.next)


def _run_query(project_id: str, query: TurnQuery) -> RunQuery:
    """Return the runs among which the turns are: a cancelled turn's is completed, an orphaned one's is stale."""
    run_status = {None: None, CANCELLED: RunStatus.COMPLETED, ORPHANED: RunStatus.RUNNING}.get(query.status)
    if query.status is not None and run_status is None:
        run_status = RunStatus(query.status)
    return RunQuery(
        project_id=project_id,
        status=run_status,
        tenant_id=query.tenant_id,
        stale=query.status == ORPHANED,
        limit=query.limit,
        after=query.after,
    )


async def _undelivered(database: Database, project_id: str, query: TurnQuery) -> RunPage:
    moment, run_id = decode_cursor(query.after, "u", ["", ""])
    read = sql.read_undelivered(project_id, str(moment), str(run_id), query.limit + 1, query.tenant_id)
    [found] = await database.batch([read])
    wanted = found.rows[: query.limit]
    last = [wanted[-1]["next_call_at"], wanted[-1]["run_id"]] if len(found.rows) > query.limit else None
    return RunPage(runs=[run_from_row(row) for row in wanted], next=None if last is None else encode_cursor("u", last))


def _message(row: Row) -> Mapping[str, Any]:
    members: dict[str, Any] = {
        "turnIndex": row["turn_index"],
        "role": row["role"],
        "content": row["content"],
        "createdAt": row["created_at"],
        "version": row["version"],
        "runId": row["run_id"],
    }
    members |= _parts(row)
    if row["role"] == "assistant":
        members |= {"finishReason": row["finish_reason"]} if row["finish_reason"] is not None else {}
        members |= {"cancelled": True} if row["cancelled"] else {}
    return members


def _open_turn(row: Row) -> Mapping[str, Any]:
    return {
        "turnIndex": row["turn_index"],
        "message": row["user_message"],
        "status": row["status"],
        "createdAt": row["created_at"],
        **_parts(row),
    }


def _parts(row: Row) -> Mapping[str, Any]:
    parts = json.loads(str(row["parts_json"] or "[]"))
    return {"parts": parts} if parts else {}
