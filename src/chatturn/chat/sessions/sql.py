"""
The SQL of sessions as people's data.

Lists are read off indexes, so that a page costs the same with any number of sessions.  All data of a session is found
by its name or by the text with which the ids of its runs begin, so that it is deleted whole, in one transaction.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from chatturn.chat.thread.identity import session_run_ids
from chatturn.chat.thread.session_sql import OWNER_OF_TURN
from chatturn.database.api import NOW, Statement
from chatturn.durable.sql.runs import MOMENT

__all__ = [
    "TURNS_AT_ONCE",
    "adopt_latest",
    "ask_for_deletion",
    "deletion_done",
    "forget_allowances",
    "forget_deleted",
    "forget_session",
    "read_deleted",
    "read_deletions",
    "read_feedback",
    "read_names",
    "read_of_sessions",
    "read_session",
    "read_sessions",
    "read_sessions_to_delete",
    "read_turns",
    "read_when_asked",
    "record_feedback",
    "rename",
]

_ACTIVE: Final = "coalesce(active_at, created_at)"

# ?1 the tenant, ?2 the owner or null, ?3 and ?4 the moment and the session after which the page begins, ?5 how many.
_READ: Final = f"""
SELECT session_id, owner_id, title, created_at, {_ACTIVE} AS active_at FROM chat_sessions
WHERE tenant_id = ?1 {{of_owner}}
  AND {_ACTIVE} <= ?3 AND ({_ACTIVE} < ?3 OR session_id > ?4)
ORDER BY {_ACTIVE} DESC, session_id LIMIT ?5
"""
_OF_OWNER: Final = "AND owner_id = ?2"
_OF_ANYBODY: Final = "AND ?2 IS NULL"

_SHOWN_OF_A_MESSAGE: Final = 400

# From other tables: a session's costs, from one row of sums a day, and the beginning of its first question, which is
# in the turn's row while the first turn is being answered.
_OF_SESSIONS: Final = f"""
SELECT j.value ->> 0 AS session_id,
  (SELECT iif(sum(delivered_cost_micro_usd_known + wasted_cost_micro_usd_known) > 0,
              sum(delivered_cost_micro_usd + wasted_cost_micro_usd), NULL) FROM chat_usage_sums
   WHERE tenant_id = ?2 AND kind = 'session' AND key = j.value ->> 0) AS cost_micro_usd,
  coalesce(
    (SELECT substr(content, 1, {_SHOWN_OF_A_MESSAGE}) FROM chat_messages
     WHERE tenant_id = ?2 AND session_id = j.value ->> 0 AND role = 'user' ORDER BY turn_index LIMIT 1),
    (SELECT substr(user_message, 1, {_SHOWN_OF_A_MESSAGE}) FROM chat_turns WHERE run_id = (j.value ->> 1) || '0')
  ) AS question
FROM json_each(?1) AS j
"""

_READ_ONE: Final = f"""
SELECT session_id, owner_id, title, created_at, {_ACTIVE} AS active_at FROM chat_sessions
WHERE tenant_id = ?1 AND session_id = ?2
"""

_RENAME: Final = f"""
UPDATE chat_sessions SET title = ?4 WHERE tenant_id = ?1 AND session_id = ?2 AND (?3 IS NULL OR owner_id = ?3)
RETURNING session_id, owner_id, title, created_at, {_ACTIVE} AS active_at
"""

# Feedback on the version that is named, or else that counts; only on a version that has an answer.
_FEEDBACK: Final = f"""
INSERT INTO chat_feedback (run_id, user_id, rating, comment, created_at, updated_at)
SELECT t.run_id, ?4, ?5, ?6, {MOMENT.format("?7")}, {MOMENT.format("?7")}
FROM chat_turns AS t JOIN durable_runs AS r ON r.run_id = t.run_id
WHERE r.status = 'completed' AND t.tenant_id = ?1 AND t.run_id = coalesce(?3,
  (SELECT m.run_id FROM chat_messages AS m JOIN chat_turns AS f ON f.run_id = ?2
   WHERE m.tenant_id = f.tenant_id AND m.session_id = f.session_id AND m.turn_index = f.turn_index
     AND m.role = 'assistant'), ?2)
ON CONFLICT (run_id, user_id) DO UPDATE SET
  rating = excluded.rating, comment = excluded.comment, updated_at = excluded.updated_at
RETURNING run_id, rating, comment, created_at, updated_at
"""

# Make the row of a session that an older version of this code has begun.
_ADOPT: Final = """
INSERT OR IGNORE INTO chat_sessions (tenant_id, session_id, owner_id, created_at)
SELECT tenant_id, session_id, user_id, created_at FROM chat_turns WHERE run_id > ?1 AND run_id < ?2
ORDER BY turn_index LIMIT 1
"""

# The ids of the session's runs are between ?1 and ?2; ?3 the tenant, ?4 the session, ?5 its owner or null for anybody,
# ?6 the latest moment of its beginning, or null.  The session's own row is deleted last, since each statement reads it.
_MEANT: Final = """
EXISTS (SELECT 1 FROM chat_sessions WHERE tenant_id = ?3 AND session_id = ?4
        AND (?5 IS NULL OR owner_id = ?5) AND (?6 IS NULL OR created_at <= ?6))
"""

# The ledger's rows stay, under no session: the money is spent.  A call that was running becomes 'lost', since nobody
# will learn its cost.
_FORGET_NAMES: Final = f"""
UPDATE chat_usage SET run_id = ?7 || substr(run_id, length(?1) + 1), session_id = '', request_id = NULL,
  tenant_id = CASE WHEN ?8 THEN '' ELSE tenant_id END,
  outcome = CASE outcome WHEN 'running' THEN 'lost' ELSE outcome END
WHERE run_id > ?1 AND run_id < ?2 AND {_MEANT}
"""

# The ledger's triggers have moved the session's sums to no session; the rows that are left hold only its name.
_FORGET_SUMS: Final = """
DELETE FROM chat_usage_sums WHERE tenant_id = ?1 AND kind = 'session' AND key = ?2 AND turns = 0
"""

# A worker that runs one of these turns finds its lease gone with the run, and writes nothing more.
_FORGET_RUNS: Final = tuple(
    f"DELETE FROM {table} WHERE run_id > ?1 AND run_id < ?2 AND {_MEANT}"
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
)
_FORGET_MESSAGES: Final = f"""
DELETE FROM chat_messages WHERE tenant_id = ?3 AND session_id = ?4 AND coalesce(?1, ?2) IS NOT NULL AND {_MEANT}
"""
_FORGET_SESSION: Final = f"""
DELETE FROM chat_sessions WHERE tenant_id = ?3 AND session_id = ?4 AND coalesce(?1, ?2) IS NOT NULL AND {_MEANT}
RETURNING 1 AS deleted
"""

_ASK: Final = f"""
INSERT INTO chat_deletions (tenant_id, user_id, asked_at) VALUES (?1, ?2, {MOMENT.format("?3")})
ON CONFLICT (tenant_id, user_id) DO UPDATE SET asked_at = excluded.asked_at
"""

# A user's sessions are found by an index, which SQLite would not choose by itself: nobody else's are read.
_BY_OWNER: Final = "INDEXED BY idx_chat_sessions_owner"
_OF_ALL_USERS: Final = "?2 = ''"

# A session that was begun after the wish is not meant by it.
_TO_DELETE: Final = """
SELECT s.session_id, d.asked_at FROM chat_deletions AS d CROSS JOIN chat_sessions AS s {by}
  ON s.tenant_id = d.tenant_id AND {of_user} AND s.created_at <= d.asked_at
WHERE d.tenant_id = ?1 AND d.user_id = ?2 LIMIT ?3
"""

# Somebody may have wished it again meanwhile, of what came since.
_DONE: Final = """
DELETE FROM chat_deletions WHERE tenant_id = ?1 AND user_id = ?2 AND asked_at = ?3 AND NOT EXISTS (
  SELECT 1 FROM chat_sessions AS s {by} WHERE s.tenant_id = ?1 AND {of_user}
    AND s.created_at <= chat_deletions.asked_at)
RETURNING 1 AS done
"""

_ADOPTED_AT_ONCE: Final = 1_000

# Make the rows of sessions that an older version of this code has begun; of the turns that were claimed in the last
# minutes, since the sweep comes once a minute.
_ADOPT_LATEST: Final = f"""
INSERT OR IGNORE INTO chat_sessions (tenant_id, session_id, owner_id, created_at)
SELECT t.tenant_id, t.session_id, {OWNER_OF_TURN}, t.created_at FROM (
  SELECT run_id FROM chat_turns WHERE log_compact = 0 AND updated_at > {MOMENT.format("?1, '-15 minutes'")}
  ORDER BY updated_at DESC LIMIT {_ADOPTED_AT_ONCE}) AS l
CROSS JOIN chat_turns AS t ON t.run_id = l.run_id
WHERE NOT EXISTS (SELECT 1 FROM chat_sessions AS s WHERE s.tenant_id = t.tenant_id AND s.session_id = t.session_id)
ORDER BY t.turn_index
"""

_RENAMED_AT_ONCE: Final = 200

# A tenant's calls whose run is gone: with its session, which has left the tenant's name, or by retention, which has
# left all names.
_DELETED: Final = f"""
SELECT DISTINCT run_id FROM chat_usage AS u WHERE tenant_id = ?1 AND recorded_at <= ?2
  AND NOT EXISTS (SELECT 1 FROM durable_runs WHERE run_id = u.run_id) LIMIT {_RENAMED_AT_ONCE}
"""
_FORGET_DELETED: Final = """
UPDATE chat_usage SET tenant_id = '', session_id = '', request_id = NULL,
  run_id = (SELECT j.value FROM json_each(?2) AS j WHERE j.key = chat_usage.run_id)
WHERE run_id IN (SELECT key FROM json_each(?2)) AND tenant_id = ?1
"""

_FORGET_ALLOWANCES: Final = f"""
DELETE FROM chat_allowances WHERE tenant_id = ?1 AND {{of_user}} AND day < substr({MOMENT.format("?3")}, 1, 10)
"""

_NAMES: Final = """
SELECT session_id FROM chat_sessions {by} WHERE tenant_id = ?1 {of_owner} AND session_id > ?3
ORDER BY session_id LIMIT ?4
"""

TURNS_AT_ONCE: Final = 10
"""How many turns of an export are in memory at a time; an answer has at most 1.5 MB."""

_TURNS: Final = f"""
SELECT t.run_id, t.turn_index, t.version, t.user_id, t.user_message, t.parts_json, t.model, t.metadata_json,
  t.parameters_json, t.history_json, t.created_at, t.replaces, t.replace_kind, t.parent_index, t.parent_version,
  t.finish_reason, t.cancelled_at IS NOT NULL AS cancelled, r.status, r.completed_at,
  EXISTS (SELECT 1 FROM chat_messages AS m WHERE m.tenant_id = t.tenant_id AND m.session_id = t.session_id
          AND m.turn_index = t.turn_index AND m.role = 'assistant' AND m.run_id = t.run_id) AS counts,
  (SELECT s.result_json ->> '$.finalText' FROM durable_steps AS s
   WHERE s.run_id = t.run_id AND s.step_index = 0 AND s.status = 'completed') AS answer
FROM chat_turns AS t JOIN durable_runs AS r ON r.run_id = t.run_id
WHERE t.run_id > ?1 AND t.run_id < ?2 ORDER BY t.run_id LIMIT {TURNS_AT_ONCE}
"""

_FEEDBACK_OF: Final = """
SELECT run_id, user_id, rating, comment, created_at, updated_at FROM chat_feedback
WHERE run_id IN (SELECT value FROM json_each(?1)) ORDER BY run_id, user_id
"""


def read_sessions(tenant_id: str, user_id: str | None, moment: str, session_id: str, limit: int) -> Statement:
    """Read sessions of a tenant, or of one of its users, the latest active first, after a place in that order."""
    text = _READ.format(of_owner=_OF_ANYBODY if user_id is None else _OF_OWNER)
    return Statement(text, (tenant_id, user_id, moment, session_id, limit))


def read_session(tenant_id: str, session_id: str) -> Statement:
    """Read one session."""
    return Statement(_READ_ONE, (tenant_id, session_id))


def read_of_sessions(tenant_id: str, session_ids: Sequence[str]) -> Statement:
    """Read what sessions have cost, and how their first question begins."""
    named = [[session_id, *session_run_ids(tenant_id, session_id)] for session_id in session_ids]
    return Statement(_OF_SESSIONS, (json.dumps(named), tenant_id))


def rename(tenant_id: str, session_id: str, owner_id: str | None, title: str | None) -> Statement:
    """Give a session a title, or none, if it is its owner's; None for anybody's."""
    return Statement(_RENAME, (tenant_id, session_id, owner_id, title))


def record_feedback(
    tenant_id: str, first_run_id: str, run_id: str | None, user_id: str, said: tuple[str | None, str | None]
) -> Statement:
    """
    Record what a user thinks of an answer, in place of what they have thought before.

    Args:
        tenant_id: The tenant.
        first_run_id: The run of its first version.
        run_id: The run of the version that is meant; None for the one that counts.
        user_id: Who says it.
        said: The rating and the comment.
    """
    return Statement(_FEEDBACK, (tenant_id, first_run_id, run_id, user_id, *said, NOW))


def forget_session(
    tenant_id: str,
    session_id: str,
    nobody: str,
    *,
    owner_id: str | None = None,
    begun_until: str | None = None,
    tenant_too: bool = False,
) -> list[Statement]:
    """
    Delete a session with all its data, and its names in the ledger; the last statement returns a row if it existed.

    Args:
        tenant_id: The tenant.
        session_id: The session.
        nobody: The random text with which its ids in the ledger begin from now on.
        owner_id: Only if it is this user's.
        begun_until: Only if it was begun by then.
        tenant_too: Whether the ledger forgets the tenant, too.
    """
    runs = session_run_ids(tenant_id, session_id)
    meant = (*runs, tenant_id, session_id, owner_id, begun_until)
    return [
        Statement(_ADOPT, runs),
        Statement(_FORGET_NAMES, (*meant, nobody, int(tenant_too))),
        Statement(_FORGET_SUMS, (tenant_id, session_id)),
        *(Statement(text, meant) for text in (*_FORGET_RUNS, _FORGET_MESSAGES, _FORGET_SESSION)),
    ]


def adopt_latest() -> Statement:
    """Make the rows of sessions that an older version of this code, which serves the same database, has just begun."""
    return Statement(_ADOPT_LATEST, (NOW,))


def ask_for_deletion(tenant_id: str, user_id: str) -> Statement:
    """Record the wish to delete all sessions of a user, or of a tenant, with an empty user."""
    return Statement(_ASK, (tenant_id, user_id, NOW))


def read_deletions() -> Statement:
    """Read the wish that has waited longest."""
    return Statement("SELECT tenant_id, user_id FROM chat_deletions ORDER BY asked_at LIMIT 1")


def read_when_asked(tenant_id: str, user_id: str) -> Statement:
    """Read when somebody wished that all data of a user, or of a tenant, be deleted."""
    return Statement("SELECT asked_at FROM chat_deletions WHERE tenant_id = ?1 AND user_id = ?2", (tenant_id, user_id))


def read_sessions_to_delete(tenant_id: str, user_id: str, limit: int) -> Statement:
    """Read sessions that a wish is about and that are still there."""
    return Statement(_TO_DELETE.format(**_sessions_of(user_id)), (tenant_id, user_id, limit))


def forget_allowances(tenant_id: str, user_id: str) -> Statement:
    """Delete what a user, or a tenant with an empty user, has begun and stored on past days; today's still counts."""
    of_user = "user_id = ?2" if user_id else _OF_ALL_USERS
    return Statement(_FORGET_ALLOWANCES.format(of_user=of_user), (tenant_id, user_id, NOW))


def read_deleted(tenant_id: str, until: str) -> Statement:
    """Read some runs that are gone, and whose calls, on record until a moment, still have the tenant's name."""
    return Statement(_DELETED, (tenant_id, until))


def forget_deleted(tenant_id: str, names: Mapping[str, str]) -> Statement:
    """Give such runs other ids in the ledger, and take the tenant's and the session's name off them."""
    return Statement(_FORGET_DELETED, (tenant_id, json.dumps(names)))


def deletion_done(tenant_id: str, user_id: str, asked_at: str) -> Statement:
    """Delete a wish of a moment once no session is left that it is about."""
    return Statement(_DONE.format(**_sessions_of(user_id)), (tenant_id, user_id, asked_at))


def read_names(tenant_id: str, user_id: str | None, after: str, limit: int) -> Statement:
    """Read the names of sessions of a tenant, or of one of its users, in their order, after one of them."""
    of = ("", _OF_ANYBODY) if user_id is None else (_BY_OWNER, _OF_OWNER)
    return Statement(_NAMES.format(by=of[0], of_owner=of[1]), (tenant_id, user_id, after, limit))


def read_turns(after: str, last: str) -> Statement:
    """Read every version of the turns whose runs' ids are between two texts, with their answers."""
    return Statement(_TURNS, (after, last))


def read_feedback(run_ids: Sequence[str]) -> Statement:
    """Read what users think of some answers."""
    return Statement(_FEEDBACK_OF, (json.dumps(list(run_ids)),))


def _sessions_of(user_id: str) -> Mapping[str, str]:
    return {"by": _BY_OWNER, "of_user": "s.owner_id = ?2"} if user_id else {"by": "", "of_user": _OF_ALL_USERS}
