"""
The SQL of lists and of retention.

Only this module of the package knows that a run may be a chat turn: a turn's messages are deleted with its run, and a
tenant's runs are its turns.

Every list is read off an index in the index's own order, so what a page costs is bounded, however many runs
there are; ``tests/contract/test_listing.py`` asks the planner.  ``rowid`` is the order of creation,
and the last column of every index on ``durable_runs``.  A ``+`` keeps a column from choosing the index.
"""

from typing import Final

from chatturn.durable.records import RunStatus
from chatturn.durable.sql.runs import MOMENT

__all__ = [
    "DELETE_FINISHED",
    "LIST_BY_STATUS",
    "LIST_OF_PROJECT",
    "LIST_OF_TENANT",
    "LIST_STALE",
    "NUMBER_OF_RUN",
    "PREFIX_OF_RUN",
    "SESSION_OF_RUN",
    "TENANT_SCAN_END",
    "TURNS_SCANNED_AT_MOST",
]

# ?1 the project, ?2 the rowid before which the page begins, ?3 how many, ?4 the status.
LIST_BY_STATUS: Final = """
SELECT rowid AS position, * FROM durable_runs
WHERE project_id = ?1 AND status = ?4 AND rowid < ?2
ORDER BY rowid DESC LIMIT ?3
"""

# The first page of every status, merged: the index has no order over all of them.  (D1 takes five terms, not six.)
LIST_OF_PROJECT: Final = f"""
SELECT * FROM ({
    " UNION ALL ".join(
        f'''
  SELECT * FROM (SELECT rowid AS position, * FROM durable_runs
    WHERE project_id = ?1 AND status = '{status}' AND rowid < ?2 ORDER BY rowid DESC LIMIT ?3)'''
        for status in RunStatus
    )
})
ORDER BY position DESC LIMIT ?3
"""

# Only a run that has not ended has a lease, so the lapsed leases are few.
# ?1 the project, ?2 now, ?3 and ?4 the expiry and the rowid after which the page begins, ?5 how many, ?6 the tenant.
LIST_STALE: Final = f"""
SELECT rowid AS position, * FROM durable_runs
WHERE lease_expires_at <= {MOMENT.format("?2")} AND lease_expires_at >= ?3
  AND (lease_expires_at > ?3 OR rowid > ?4)
  AND +project_id = ?1 AND +status = 'running'
  AND (?6 IS NULL OR EXISTS (
    SELECT 1 FROM chat_turns AS t WHERE t.run_id = durable_runs.run_id AND t.tenant_id = ?6))
ORDER BY lease_expires_at, rowid LIMIT ?5
"""

TURNS_SCANNED_AT_MOST: Final = 2_000
"""Turns of a tenant read for one page by status: the status stands in the turn's run, so each run must be read."""

_SCAN: Final = """
FROM chat_turns WHERE tenant_id = ?1 AND created_at <= ?2 AND (created_at < ?2 OR run_id < ?3)
ORDER BY created_at DESC, run_id DESC
"""

# ?1 the tenant, ?2 and ?3 the turn's moment and id before which the page begins, ?4 how many turns are looked at,
# ?5 the project, ?6 the status or null, ?7 how many.  CROSS JOIN: the turns first.
LIST_OF_TENANT: Final = f"""
SELECT t.created_at AS turn_created_at, r.*
FROM (SELECT run_id, created_at {_SCAN} LIMIT ?4) AS t
CROSS JOIN durable_runs AS r ON r.run_id = t.run_id
WHERE r.project_id = ?5 AND (?6 IS NULL OR r.status = ?6)
ORDER BY t.created_at DESC, t.run_id DESC LIMIT ?7
"""

TENANT_SCAN_END: Final = f"SELECT created_at, run_id {_SCAN} LIMIT 1 OFFSET ?4 - 1"
"""The last turn that `LIST_OF_TENANT` reads, if it reads as many as it may; else no row."""

# A run of agent-runtime may be failed and leased: it is being tried again.  A run with a pending hook call
# stays.  ?1 now, ?2 the age as a modifier, ?3 how many.
_FINISHED: Final = f"""
SELECT run_id FROM durable_runs
WHERE completed_at < {MOMENT.format("?1, ?2")} AND +status IN ('completed', 'failed')
  AND (lease_holder_id IS NULL OR +lease_expires_at IS NULL OR +lease_expires_at <= {MOMENT.format("?1")})
  AND NOT EXISTS (
    SELECT 1 FROM chat_outbox AS o WHERE o.run_id = durable_runs.run_id AND o.status = 'pending')
ORDER BY completed_at, rowid LIMIT ?3
"""

PREFIX_OF_RUN: Final = "rtrim(run_id, '0123456789')"
NUMBER_OF_RUN: Final = f"CAST(substr(run_id, length({PREFIX_OF_RUN}) + 1) AS INTEGER)"
"""The SQL by which an index has failed runs: of the first versions of a session's turns the session and the index."""

SESSION_OF_RUN: Final = "rtrim({}, '0123456789~')"
"""The SQL of the prefix that only the run ids of one session have, made of one of these ids."""

# The runs are deleted last: until then each statement finds the same runs.  Their usage stays on record, under ids that
# no other run has: the same turn may be run again, and its attempts then count from 1.
DELETE_FINISHED: Final = (
    f"""DELETE FROM chat_messages WHERE (tenant_id, session_id, turn_index) IN (
      SELECT tenant_id, session_id, turn_index FROM chat_turns WHERE run_id IN ({_FINISHED}))
      AND run_id IN ({_FINISHED})""",
    f"""UPDATE chat_usage SET run_id = run_id || '@' || {MOMENT.format("?1")} WHERE run_id IN ({_FINISHED})""",
    f"""UPDATE chat_sessions SET revision = revision + 1 WHERE (tenant_id, session_id) IN (
      SELECT tenant_id, session_id FROM chat_turns WHERE run_id IN ({_FINISHED}))""",
    f"""DELETE FROM chat_sessions WHERE (tenant_id, session_id) IN (
      SELECT t.tenant_id, t.session_id FROM chat_turns AS t WHERE t.run_id IN ({_FINISHED}) AND NOT EXISTS (
        SELECT 1 FROM chat_turns AS o WHERE o.run_id > {SESSION_OF_RUN.format("t.run_id")}
          AND o.run_id < {SESSION_OF_RUN.format("t.run_id")} || '~' AND o.run_id NOT IN ({_FINISHED})))""",
    *(
        f"DELETE FROM {table} WHERE run_id IN ({_FINISHED})"
        for table in (
            "chat_feedback",
            "chat_turns",
            "chat_segments",
            "chat_outbox",
            "durable_waits",
            "durable_events",
            "durable_steps",
            "durable_runs",
        )
    ),
)
