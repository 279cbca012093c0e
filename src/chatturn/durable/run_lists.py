"""
Lists of runs, a page at a time, and the deletion of old ones.

A cursor is a place in an index, so the next page neither repeats nor misses a run that existed all the time,
whatever is created or deleted meanwhile.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any, Final

from chatturn.database.api import NOW, Database, Row, Statement, Value
from chatturn.durable.records import RunPage, RunQuery
from chatturn.durable.rows import run_from_row
from chatturn.durable.sql import run_lists as sql
from chatturn.errors import InvalidField
from chatturn.jsontext.depth import nests_deeper

__all__ = ["decode_cursor", "delete_finished_runs", "encode_cursor", "list_runs"]

_LAST_ROWID: Final = 2**50
_END_OF_TIME: Final = "9999-12-31T23:59:59.999Z"


async def list_runs(database: Database, query: RunQuery) -> RunPage:
    """
    Return one page of a list.

    Raises:
        InvalidField: The cursor is not one of this list's.
    """
    if query.stale:
        return await _stale(database, query)
    if query.tenant_id is not None:
        return await _of_tenant(database, query, query.tenant_id)
    return await _of_project(database, query)


async def delete_finished_runs(database: Database, *, older_than_ms: int, limit: int) -> int:
    """Delete at most *limit* runs that ended more than *older_than_ms* ago, with their data; return their number."""
    if older_than_ms < 0 or limit < 1:
        raise ValueError("older_than_ms must be at least 0, and limit at least 1")
    params = (NOW, f"-{older_than_ms / 1000:.3f} seconds", limit)
    outcomes = await database.batch([Statement(each, params) for each in sql.DELETE_FINISHED])
    return outcomes[-1].changes


async def _of_project(database: Database, query: RunQuery) -> RunPage:
    [before] = decode_cursor(query.after, "p", [_LAST_ROWID])
    params = (query.project_id, before, query.limit + 1)
    if query.status is None:
        statement = Statement(sql.LIST_OF_PROJECT, params)
    else:
        statement = Statement(sql.LIST_BY_STATUS, (*params, query.status))
    [found] = await database.batch([statement])
    return _page(found.rows, query, lambda row: ["p", row["position"]])


async def _stale(database: Database, query: RunQuery) -> RunPage:
    expiry, rowid = decode_cursor(query.after, "s", ["", 0])
    params = (query.project_id, NOW, expiry, rowid, query.limit + 1, query.tenant_id)
    [found] = await database.batch([Statement(sql.LIST_STALE, params)])
    return _page(found.rows, query, lambda row: ["s", row["lease_expires_at"], row["position"]])


async def _of_tenant(database: Database, query: RunQuery, tenant_id: str) -> RunPage:
    moment, run_id = decode_cursor(query.after, "t", [_END_OF_TIME, ""])
    scanned = query.limit + 1 if query.status is None else sql.TURNS_SCANNED_AT_MOST
    place = (tenant_id, moment, run_id, scanned)
    found, end = await database.batch(
        [
            Statement(sql.LIST_OF_TENANT, (*place, query.project_id, query.status, query.limit + 1)),
            Statement(sql.TENANT_SCAN_END, place),
        ]
    )
    page = _page(found.rows, query, lambda row: ["t", row["turn_created_at"], row["run_id"]])
    if page.next is None and end.rows:
        return RunPage(runs=page.runs, next=_encoded(["t", end.rows[0]["created_at"], end.rows[0]["run_id"]]))
    return page


def _page(rows: Sequence[Row], query: RunQuery, place: Any) -> RunPage:
    """Make a page of rows; the query asked for one row more than the limit, which tells whether a page follows."""
    wanted = rows[: query.limit]
    more = len(rows) > query.limit
    return RunPage(runs=[run_from_row(row) for row in wanted], next=_encoded(place(wanted[-1])) if more else None)


def encode_cursor(kind: str, place: Sequence[Value]) -> str:
    """Return the cursor for a place in a list of one kind."""
    return _encoded([kind, *place])


def _encoded(place: list[Value]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode().rstrip("=")


def decode_cursor(text: str | None, kind: str, first: list[Value]) -> list[Value]:
    """
    Return the place that a cursor names, or *first* if there is no cursor.

    Raises:
        InvalidField: The cursor is not one of this kind of list.
    """
    if text is None:
        return first
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
        found, *place = [] if nests_deeper(decoded, 1) else json.loads(decoded)
    except (ValueError, TypeError):
        found, place = None, []
    if found != kind or [type(part) for part in place] != [type(part) for part in first] or _beyond(place):
        raise InvalidField("after is not a cursor of this list", field="after")
    return place


def _beyond(place: list[Any]) -> bool:
    return any(type(part) is int and not 0 <= part <= _LAST_ROWID for part in place)
