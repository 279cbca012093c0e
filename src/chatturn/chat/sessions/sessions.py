"""Sessions as their users see them: listed by who was active last, named, and their answers rated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from chatturn.chat.sessions import sql
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.database.api import Database, Row
from chatturn.durable.run_lists import decode_cursor, encode_cursor

__all__ = [
    "Feedback",
    "SessionPage",
    "SessionQuery",
    "list_sessions",
    "rate_answer",
    "rename_session",
    "shown_feedback",
]

_TITLE_CHARACTERS: Final = 80
_END_OF_TIME: Final = "~"  # behind every timestamp


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionQuery:
    """
    Which sessions to list.

    Attributes:
        tenant_id: The tenant.
        user_id: Only this user's sessions; None for all of the tenant's.
        limit: The most sessions on a page.
        after: The `next` of the previous page.
    """

    tenant_id: str
    user_id: str | None
    limit: int
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPage:
    """
    One page of a list of sessions, the latest active first.

    Attributes:
        sessions: Each as JSON.
        next: Where the next page begins, or None at the list's end.
    """

    sessions: Sequence[Mapping[str, Any]]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """
    What a user thinks of an answer.

    Attributes:
        rating: ``up`` or ``down``; None for a comment alone.
        comment: In their own words; None for none.
        version: The version of the answer; None for the version that counts.
    """

    rating: str | None
    comment: str | None
    version: int | None = None


async def list_sessions(database: Database, query: SessionQuery) -> SessionPage:
    """
    Return one page of sessions, in two round trips.

    A session that becomes active while pages are read moves to the front, and may be missing on the pages behind.

    Raises:
        InvalidField: The cursor is not one of this list's.
    """
    moment, name = decode_cursor(query.after, "a", [_END_OF_TIME, ""])
    [found] = await database.batch(
        [sql.read_sessions(query.tenant_id, query.user_id, str(moment), str(name), query.limit + 1)]
    )
    rows = found.rows[: query.limit]
    more = len(found.rows) > query.limit
    return SessionPage(
        sessions=await _shown(database, query.tenant_id, rows),
        next=encode_cursor("a", [rows[-1]["active_at"], rows[-1]["session_id"]]) if more else None,
    )


async def rename_session(
    database: Database, tenant_id: str, session_id: str, owner_id: str | None, title: str | None
) -> Mapping[str, Any] | None:
    """Give a session a title, or none, and return it as in the list; None if its owner has no such session."""
    [found] = await database.batch([sql.rename(tenant_id, session_id, owner_id, title)])
    shown = await _shown(database, tenant_id, found.rows)
    return shown[0] if shown else None


async def rate_answer(database: Database, identity: ChatTurnIdentity, feedback: Feedback) -> Mapping[str, Any] | None:
    """
    Record what the identity's user thinks of a turn's answer, in place of their earlier feedback.

    Returns:
        What is on record, as JSON; None if the turn, or that version of it, has no answer.
    """
    first = turn_run_id(identity)
    version = feedback.version
    run_id = None if version is None else turn_run_id(replace(identity, version=version))
    said = (feedback.rating, feedback.comment)
    [found] = await database.batch([sql.record_feedback(identity.tenant_id, first, run_id, identity.user_id, said)])
    return shown_feedback(found.rows[0]) if found.rows else None


def shown_feedback(row: Row) -> Mapping[str, Any]:
    """Return a row of feedback as JSON."""
    return {
        "runId": row["run_id"],
        "rating": row["rating"],
        "comment": row["comment"],
        "createdAt": row["created_at"],
        "updatedAt": row["updated_at"],
    }


async def _shown(database: Database, tenant_id: str, rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    if not rows:
        return []
    [found] = await database.batch([sql.read_of_sessions(tenant_id, [str(row["session_id"]) for row in rows])])
    more = {row["session_id"]: row for row in found.rows}
    return [_session(row, more[row["session_id"]]) for row in rows]


def _session(row: Row, more: Row) -> Mapping[str, Any]:
    question = more["question"]
    return {
        "sessionId": row["session_id"],
        "userId": row["owner_id"],
        "title": row["title"] if row["title"] is not None else _title(str(question or "")),
        "named": row["title"] is not None,
        "createdAt": row["created_at"],
        "lastActivityAt": row["active_at"],
        "costMicroUsd": more["cost_micro_usd"],
    }


def _title(question: str) -> str | None:
    """Return the question's first words, on one line; None for a question without words."""
    text = " ".join(question.split())
    if len(text) <= _TITLE_CHARACTERS:
        return text or None
    cut = text[: _TITLE_CHARACTERS - 1]
    return (cut.rpartition(" ")[0] or cut) + "…"
