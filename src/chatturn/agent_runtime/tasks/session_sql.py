"""
Sessions of backends in a SQL database: D1 in the Worker, SQLite beside it.

Each method is one round trip.  A store has the rows of one tenant only, so nobody can get another tenant's session by
guessing its id.
"""

import json
from collections.abc import Sequence
from typing import Final

from chatturn.agent_runtime.tasks.sessions import (
    MAX_EVENTS_PER_PAGE,
    StoredRuntimeEvent,
    event_text,
    metadata_text,
    page,
    require_session,
)
from chatturn.agent_runtime.values.codec import decode_runtime_event
from chatturn.agent_runtime.values.events import RuntimeStreamEvent
from chatturn.agent_runtime.values.given import require_text
from chatturn.agent_runtime.values.tasks import RuntimeSession, SessionStatus
from chatturn.database.api import NOW, Database, Row, Statement
from chatturn.durable.records import Lease
from chatturn.errors import LeaseLost, SessionMismatchError, ValidationError

__all__ = ["SqlRuntimeSessionStore"]

_GET: Final = "SELECT * FROM runtime_sessions WHERE tenant_id = ?1 AND session_id = ?2"

# Each claim of a run raises its epoch.  A run in another database has no row here, so it fences nothing.
_IS_CURRENT: Final = "NOT EXISTS (SELECT 1 FROM durable_runs WHERE run_id = {} AND epoch <> {})"

_PUT: Final = f"""
    INSERT INTO runtime_sessions
      (tenant_id, session_id, backend, status, resume_token, metadata_json, created_at, updated_at)
    SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE {_IS_CURRENT.format("?9", "?10")}
    ON CONFLICT (tenant_id, session_id) DO UPDATE SET
      status = excluded.status, resume_token = excluded.resume_token, metadata_json = excluded.metadata_json,
      updated_at = excluded.updated_at
    WHERE backend = excluded.backend"""

_APPEND: Final = f"""
    INSERT INTO runtime_session_events (tenant_id, session_id, seq, event_json, recorded_at)
    SELECT ?1, ?2,
      (SELECT coalesce(max(seq), -1) + 1 FROM runtime_session_events WHERE tenant_id = ?1 AND session_id = ?2),
      ?3, strftime('%Y-%m-%dT%H:%M:%fZ', ?4)
    FROM runtime_sessions WHERE tenant_id = ?1 AND session_id = ?2 AND {_IS_CURRENT.format("?5", "?6")}
    RETURNING seq"""

_LIST: Final = """
    SELECT seq, event_json FROM runtime_session_events
    WHERE tenant_id = ?1 AND session_id = ?2 AND seq > ?3 ORDER BY seq LIMIT ?4"""

_IDLE: Final = """
    SELECT session_id FROM runtime_sessions
    WHERE tenant_id = ?1 AND updated_at < strftime('%Y-%m-%dT%H:%M:%fZ', ?2, ?3)
    ORDER BY updated_at LIMIT ?4"""

_DELETE_EVENTS: Final = f"DELETE FROM runtime_session_events WHERE tenant_id = ?1 AND session_id IN ({_IDLE})"
_DELETE_SESSIONS: Final = f"DELETE FROM runtime_sessions WHERE tenant_id = ?1 AND session_id IN ({_IDLE})"


_MOST: Final = 10**12
"""The most sessions, and the largest age in milliseconds (31 years), that `delete_idle` takes."""


class SqlRuntimeSessionStore:
    """
    The sessions of one tenant.

    Args:
        database: A database with the schema of chatturn.
        tenant_id: The tenant whose sessions they are; "" if there is only one.
        lease: The lease of the run for which it writes; None if it is not fenced.
    """

    def __init__(self, database: Database, *, tenant_id: str = "", lease: Lease | None = None) -> None:
        self._database = database
        self._tenant_id = tenant_id
        self._lease = lease

    def fenced_by(self, lease: Lease) -> "SqlRuntimeSessionStore":
        """
        Return the store of the one worker that holds *lease*, if the run is in the same database.

        Its `put` and `append_event` raise `LeaseLost`, and write nothing, once another worker has claimed the run.
        """
        return SqlRuntimeSessionStore(self._database, tenant_id=self._tenant_id, lease=lease)

    @property
    def _fence(self) -> tuple[str | None, int | None]:
        return (None, None) if self._lease is None else (self._lease.run_id, self._lease.epoch)

    async def get(self, session_id: str) -> RuntimeSession | None:
        """See `RuntimeSessionStore.get`."""
        require_text(session_id, "a session's id")
        [found] = await self._database.batch([Statement(_GET, (self._tenant_id, session_id))])
        return _from_row(found.rows[0]) if found.rows else None

    async def put(self, session: RuntimeSession) -> None:
        """See `RuntimeSessionStore.put`."""
        require_session(session)
        members = (session.id, session.backend, session.status.value, session.resume_token, metadata_text(session))
        times = (session.created_at, session.updated_at)
        put, found = await self._database.batch(
            [
                Statement(_PUT, (self._tenant_id, *members, *times, *self._fence)),
                Statement(_GET, (self._tenant_id, session.id)),
            ]
        )
        if put.changes:
            return
        if found.rows and found.rows[0]["backend"] != session.backend:
            raise SessionMismatchError(str(found.rows[0]["backend"]), session.backend)
        raise LeaseLost("another worker goes on with its session", run_id=self._fence[0] or "")

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> int:
        """See `RuntimeSessionStore.append_event`."""
        require_text(session_id, "a session's id")
        [appended] = await self._database.batch(
            [Statement(_APPEND, (self._tenant_id, session_id, event_text(event), NOW, *self._fence))]
        )
        if not appended.rows:
            if self._lease is not None and await self.get(session_id) is not None:
                raise LeaseLost("another worker goes on with its session", run_id=self._lease.run_id)
            raise ValidationError(f"there is no session {session_id!r:.220}")
        return int(appended.rows[0]["seq"] or 0)

    async def list_events(
        self, session_id: str, *, after: int = -1, limit: int = MAX_EVENTS_PER_PAGE
    ) -> Sequence[StoredRuntimeEvent]:
        """See `RuntimeSessionStore.list_events`."""
        asked = (require_text(session_id, "a session's id"), *page(after, limit))
        [found] = await self._database.batch([Statement(_LIST, (self._tenant_id, *asked))])
        return [
            StoredRuntimeEvent(seq=int(row["seq"] or 0), event=decode_runtime_event(str(row["event_json"])))
            for row in found.rows
        ]

    async def delete_idle(self, *, older_than_ms: int, limit: int = 50) -> int:
        """
        Delete sessions that were last put more than *older_than_ms* ago, with their events; return how many.

        Sessions of any status are deleted, at most *limit* in one transaction: call again until fewer are deleted.

        Raises:
            ValidationError: *older_than_ms* or *limit* is no whole number from 0; nothing was deleted.
        """
        for name, value in (("older_than_ms", older_than_ms), ("limit", limit)):
            if type(value) is not int or not 0 <= value <= _MOST:
                raise ValidationError(f"{name} must be a whole number from 0, not {value!r:.40}")
        params = (self._tenant_id, NOW, f"-{older_than_ms / 1000:.3f} seconds", limit)
        _, deleted = await self._database.batch(
            [Statement(_DELETE_EVENTS, params), Statement(_DELETE_SESSIONS, params)]
        )
        return deleted.changes


def _from_row(row: Row) -> RuntimeSession:
    token, metadata = row["resume_token"], row["metadata_json"]
    return RuntimeSession(
        id=str(row["session_id"]),
        backend=str(row["backend"]),
        status=SessionStatus(str(row["status"])),
        created_at=str(row["created_at"]),
        updated_at=str(row["updated_at"]),
        resume_token=None if token is None else str(token),
        metadata=None if metadata is None else json.loads(str(metadata)),
    )
