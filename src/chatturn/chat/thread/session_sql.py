"""
The SQL of sessions: each session's owner, and its revision, which counts the changes that its readers can see.

The owner is the user who claimed the first turn.  A session without a row, from a schema without this table, belongs
to the user who claimed its turn of the lowest index; it gets its row with the next claim.  The row is deleted with the
session's last turn.

The revision rises in the transaction of every change that a reader of the messages can see: `record_session` with a
claim, `session_changed` with an attempt's end, `session_of_run_changed` where nobody holds the run.
"""

from typing import Final

from chatturn.chat.thread.identity import ChatTurnIdentity, session_run_ids
from chatturn.database.api import NOW, Row, Statement
from chatturn.durable.sql.run_lists import SESSION_OF_RUN
from chatturn.durable.sql.runs import HELD, MOMENT
from chatturn.durable.store import Guard
from chatturn.errors import NotFound

__all__ = [
    "OWNER_OF_TURN",
    "owned_by",
    "read_owner",
    "read_revision",
    "record_session",
    "session_changed",
    "session_of_run_changed",
]

_OWNER: Final = """
coalesce((SELECT owner_id FROM chat_sessions WHERE tenant_id = {tenant} AND session_id = {session}),
         (SELECT user_id FROM chat_turns WHERE run_id > {first} AND run_id < {last} ORDER BY turn_index LIMIT 1){user})
"""

_RECORD: Final = f"""
INSERT INTO chat_sessions (tenant_id, session_id, owner_id, created_at, revision)
SELECT ?4, ?5, {_OWNER.format(tenant="?4", session="?5", first="?6", last="?7", user=", ?8")}, {MOMENT.format("?9")}, 1
WHERE {HELD}
ON CONFLICT (tenant_id, session_id) DO UPDATE SET revision = revision + 1, active_at = {MOMENT.format("?9")}
"""

_CHANGED: Final = f"""
UPDATE chat_sessions SET revision = revision + 1 WHERE tenant_id = ?4 AND session_id = ?5 AND {HELD}
"""

_CHANGED_OF_RUN: Final = """
UPDATE chat_sessions SET revision = revision + 1
WHERE (tenant_id, session_id) IN (SELECT tenant_id, session_id FROM chat_turns WHERE run_id = ?1)
"""

# `created_at` tells a session from a deleted session of the same name.
_READ_REVISION: Final = """
SELECT revision, created_at FROM chat_sessions WHERE tenant_id = ?1 AND session_id = ?2
"""

_IS_OWNER: Final = f"{_OWNER.format(tenant='{0}', session='{1}', first='{2}', last='{3}', user=', {4}')} = {{4}}"

_READ: Final = f"SELECT {_OWNER.format(tenant='?1', session='?2', first='?3', last='?4', user='')} AS owner_id"

OWNER_OF_TURN: Final = f"""
coalesce((SELECT s.owner_id FROM chat_sessions AS s WHERE s.tenant_id = t.tenant_id AND s.session_id = t.session_id),
         (SELECT f.user_id FROM chat_turns AS f WHERE f.run_id > {SESSION_OF_RUN.format("t.run_id")}
          AND f.run_id < {SESSION_OF_RUN.format("t.run_id")} || '~' ORDER BY f.turn_index LIMIT 1))
"""
"""The SQL of the owner of the turn ``t``."""


def record_session(identity: ChatTurnIdentity) -> Statement:
    """Record whose session it is, unless that is on record, and that it is active: with the claim, before its turn."""
    return Statement(_RECORD, (*_session(identity.tenant_id, identity.session_id), identity.user_id, NOW))


def session_changed(identity: ChatTurnIdentity) -> Statement:
    """Record that what readers of the session see changes, under the lease of one of its turns."""
    return Statement(_CHANGED, (identity.tenant_id, identity.session_id))


def session_of_run_changed(run_id: str) -> Statement:
    """Record that what readers of a turn's session see changes, in a transaction without a lease."""
    return Statement(_CHANGED_OF_RUN, (run_id,))


def read_revision(tenant_id: str, session_id: str) -> Statement:
    """Read the session's revision; no row for a session without a turn."""
    return Statement(_READ_REVISION, (tenant_id, session_id))


def owned_by(identity: ChatTurnIdentity) -> Guard:
    """Let only the session's owner claim a turn of it; in a session without a turn, anybody."""

    def refusal(_row: Row) -> Exception:
        return NotFound("there is no such session")

    params = (*_session(identity.tenant_id, identity.session_id), identity.user_id)
    return Guard(sql=_IS_OWNER, params=params, refusal=refusal)


def read_owner(tenant_id: str, session_id: str) -> Statement:
    """Read whose a session is; null for one without a turn."""
    return Statement(_READ, _session(tenant_id, session_id))


def _session(tenant_id: str, session_id: str) -> tuple[str, str, str, str]:
    return (tenant_id, session_id, *session_run_ids(tenant_id, session_id))
