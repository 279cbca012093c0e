"""
All data of a session, a user or a tenant, as lines of JSON: a few turns in memory at a time, resumed by a cursor.

The lines are a session's ``session``, then a ``turn`` for each version of each of its turns, each followed by its
``feedback``; at last ``end``, or ``more`` with a cursor where the export is longer than one response may be.  A text
without either broke off.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chatturn.chat.requests import CANCELLED
from chatturn.chat.sessions import sql
from chatturn.chat.sessions.sessions import shown_feedback
from chatturn.chat.thread.identity import session_run_ids
from chatturn.database.api import Database, Row
from chatturn.durable.run_lists import decode_cursor, encode_cursor
from chatturn.errors import InvalidField
from chatturn.settings import Plan

__all__ = ["ExportQuery", "export"]

_PAGES: Final[Mapping[Plan, int]] = {"paid": 300, "free": 15}
"""How many pages one response reads, by plan: each takes 2 or 3 of an invocation's 1,000 or 50 queries."""

_SESSIONS_AT_ONCE: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuery:
    """
    Whose data is exported.

    Attributes:
        tenant_id: The tenant.
        user_id: Only this user's sessions; None for all of the tenant's.
        session_id: Only this session; None for all.
        after: The cursor of an earlier response that ended with ``more``.
    """

    tenant_id: str
    user_id: str | None = None
    session_id: str | None = None
    after: str | None = None


async def export(database: Database, query: ExportQuery, plan: Plan) -> AsyncIterator[str]:
    """
    Yield the lines, some at a time.

    Raises:
        InvalidField: The cursor is not one of an export.
        StoreError: The database does not answer, or refuses.
    """
    current, place = await _read_cursor(database, query)
    pages = _PAGES[plan]
    async for session_id in _sessions(database, query, current):
        first, last = session_run_ids(query.tenant_id, session_id)
        if session_id != current:
            place = first
            yield _lines([await _described(database, query.tenant_id, session_id)])
        while True:
            if not pages:
                yield _lines([{"type": "more", "after": encode_cursor("x", [session_id, place])}])
                return
            pages -= 1
            rows, lines = await _page(database, place, last)
            if lines:
                yield _lines(lines)
            if len(rows) < sql.TURNS_AT_ONCE:
                break
            place = str(rows[-1]["run_id"])
    yield _lines([{"type": "end"}])


async def _read_cursor(database: Database, query: ExportQuery) -> tuple[str, str]:
    """
    Return the session and the run that were exported last; empty for none.

    Raises:
        InvalidField: The cursor is not one of an export, or leads to a session that this export does not have.
    """
    if query.after is None:
        return "", ""
    session_id, run_id = map(str, decode_cursor(query.after, "x", ["", ""]))
    first, last = session_run_ids(query.tenant_id, session_id)
    [found] = await database.batch([sql.read_session(query.tenant_id, session_id)])
    owner = found.rows[0]["owner_id"] if found.rows else None
    if (
        not first <= run_id < last
        or query.session_id not in {None, session_id}
        or (query.user_id is not None and query.user_id != owner)
    ):
        raise InvalidField("after is not a cursor of this export", field="after")
    return session_id, run_id


async def _sessions(database: Database, query: ExportQuery, current: str) -> AsyncIterator[str]:
    """Yield the names of the sessions from *current* on."""
    if query.session_id is not None:
        yield query.session_id
        return
    if current:
        yield current
    while True:
        [found] = await database.batch([sql.read_names(query.tenant_id, query.user_id, current, _SESSIONS_AT_ONCE)])
        for row in found.rows:
            current = str(row["session_id"])
            yield current
        if len(found.rows) < _SESSIONS_AT_ONCE:
            return


async def _described(database: Database, tenant_id: str, session_id: str) -> Mapping[str, Any]:
    [found] = await database.batch([sql.read_session(tenant_id, session_id)])
    row = found.rows[0] if found.rows else {}
    return {
        "type": "session",
        "tenantId": tenant_id,
        "sessionId": session_id,
        "userId": row.get("owner_id"),
        "title": row.get("title"),
        "createdAt": row.get("created_at"),
        "lastActivityAt": row.get("active_at"),
    }


async def _page(database: Database, after: str, last: str) -> tuple[Sequence[Row], list[Mapping[str, Any]]]:
    [found] = await database.batch([sql.read_turns(after, last)])
    if not found.rows:
        return [], []
    [rated] = await database.batch([sql.read_feedback([str(row["run_id"]) for row in found.rows])])
    lines: list[Mapping[str, Any]] = []
    for row in found.rows:
        lines.append(_turn(row))
        lines += [
            {"type": "feedback", "userId": each["user_id"], **shown_feedback(each)}
            for each in rated.rows
            if each["run_id"] == row["run_id"]
        ]
    return found.rows, lines


def _turn(row: Row) -> Mapping[str, Any]:
    return {
        "type": "turn",
        "turnIndex": row["turn_index"],
        "version": row["version"],
        "counts": bool(row["counts"]),
        "runId": row["run_id"],
        "userId": row["user_id"],
        "message": row["user_message"],
        "parts": _read(row["parts_json"]),
        "model": row["model"],
        "metadata": _read(row["metadata_json"]),
        "parameters": _read(row["parameters_json"]),
        "history": _read(row["history_json"]),
        "status": CANCELLED if row["cancelled"] else row["status"],
        "answer": row["answer"],
        "finishReason": row["finish_reason"],
        "replaces": row["replaces"],
        "replaceKind": row["replace_kind"],
        "parentIndex": row["parent_index"],
        "parentVersion": row["parent_version"],
        "createdAt": row["created_at"],
        "completedAt": row["completed_at"],
    }


def _read(text: object) -> Any:
    return None if text is None else json.loads(str(text))


def _lines(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(line, ensure_ascii=False, separators=(',', ':'))}\n" for line in lines)
