"""
The SQL of one turn at a time: what a turn of a session has to wait for, and who comes next.

A turn may begin once no other turn of its session runs or is suspended, whatever its index, and no turn of a lower
index is pending.  An index of the runs that are not over finds both, so that a look costs the same in a thread of any
length.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from chatturn.chat.thread.identity import ChatTurnIdentity, session_run_ids, turn_run_id, version_run_ids
from chatturn.chat.thread.their_sql import Theirs
from chatturn.database.api import NOW, Row, Statement, Value
from chatturn.durable.records import RunStatus
from chatturn.durable.sql.run_lists import NUMBER_OF_RUN, PREFIX_OF_RUN, SESSION_OF_RUN
from chatturn.durable.sql.runs import HELD, MOMENT
from chatturn.durable.store import Condition, Guard
from chatturn.errors import QueueFull, RunNotFound, SessionBusy, TurnPassed, VersionConflict

__all__ = [
    "NEXT_IN_LINE",
    "Front",
    "begins_now",
    "cancel_queued",
    "idle",
    "interrupt",
    "its_turn",
    "not_passed",
    "read_due_pending",
    "read_taken",
    "room",
    "still_follows",
    "still_there",
]

_OPEN: Final = """
SELECT r.run_id, r.status, r.lease_expires_at, t.turn_index, t.version
FROM durable_runs AS r INDEXED BY idx_durable_runs_open CROSS JOIN chat_turns AS t ON t.run_id = r.run_id
WHERE r.run_id > {1} AND r.run_id < {2} AND r.status IN ('pending', 'running') AND r.run_id <> {0}
"""
_SUSPENDED: Final = """
SELECT r.run_id, r.status, r.lease_expires_at, t.turn_index, t.version
FROM durable_runs AS r INDEXED BY idx_durable_runs_suspended CROSS JOIN chat_turns AS t ON t.run_id = r.run_id
WHERE r.run_id > {1} AND r.run_id < {2} AND r.status = 'suspended' AND r.run_id <> {0}
"""
_OTHERS: Final = f"{_OPEN} UNION ALL {_SUSPENDED}"

# ``{0}`` the run, ``{1}`` and ``{2}`` around the session's runs, ``{3}`` and ``{4}`` its place, ``{5}`` now.
_IN_FRONT: Final = f"""
{_OPEN} AND (r.status = 'running' OR (t.turn_index, t.version) < ({{3}}, {{4}})) UNION ALL {_SUSPENDED}
"""

_OWN: Final = "EXISTS (SELECT 1 FROM durable_runs WHERE run_id = {0} AND status IN (%s))"
_BEGUN: Final = _OWN % "'running', 'suspended', 'completed'"
_THERE: Final = _OWN % "'pending', 'running', 'suspended', 'completed'"

_ITS_TURN: Final = f"{_BEGUN} OR NOT EXISTS (SELECT 1 FROM ({_IN_FRONT}))"

_NOW: Final = MOMENT.format("{5}")

# The turn in front: a turn that runs, else a suspended turn, else the pending turn with the lowest index.
_TOLD: Final = f"""
(SELECT count(*) FROM ({_IN_FRONT})) AS position,
(SELECT json_object(
   'run_id', f.run_id, 'status', f.status, 'turn_index', f.turn_index, 'key', w.event_key, 'wake_at', w.wake_at,
   'left', CASE f.status
     WHEN 'suspended' THEN coalesce(w.wake_at <= {_NOW}, 1)
     ELSE coalesce(f.lease_expires_at <= {_NOW}, 1) END)
 FROM ({_IN_FRONT}) AS f LEFT JOIN durable_waits AS w ON w.run_id = f.run_id
 ORDER BY CASE f.status WHEN 'running' THEN 0 WHEN 'suspended' THEN 1 ELSE 2 END, f.turn_index, f.version
 LIMIT 1) AS front
"""

_ROOM: Final = f"""
{_ITS_TURN} OR {_THERE} OR (SELECT count(*) FROM ({_OPEN}) WHERE status = 'pending') < {{6}}
"""

_IDLE: Final = f"{_THERE} OR NOT EXISTS (SELECT 1 FROM ({_OTHERS}))"
_WHOSE: Final = f"(SELECT run_id FROM ({_OTHERS}) ORDER BY status = 'pending', turn_index LIMIT 1) AS other"

# The thread has gone on without a turn that does not exist or has failed.  A turn of agent-runtime, ``{6}``, exists
# once it is over.
_ANSWERED_AFTER: Final = """
SELECT 1 FROM chat_messages AS m WHERE m.tenant_id = {4} AND m.session_id = {5} AND m.turn_index > {3}
  AND m.role = 'assistant' AND m.turn_index < coalesce((
    SELECT min(b.turn_index) FROM chat_messages AS b INDEXED BY idx_chat_messages_breaks
    WHERE b.tenant_id = {4} AND b.session_id = {5} AND b.breaks = 1), 9223372036854775807)
"""
_GOES_ON: Final = f"SELECT run_id FROM ({_OTHERS}) WHERE status <> 'pending' AND turn_index > {{3}}"
_NOT_PASSED: Final = f"""
{_THERE} OR EXISTS (SELECT 1 FROM durable_runs WHERE run_id = {{6}} AND status = 'completed')
OR (NOT EXISTS ({_ANSWERED_AFTER}) AND NOT EXISTS ({_GOES_ON}))
"""
_PASSED_BY: Final = f"({_GOES_ON} LIMIT 1) AS other, EXISTS ({_ANSWERED_AFTER}) AS answered"

# ``{1}`` and ``{2}`` around the session's runs, ``{5}`` the tenant, ``{6}`` the session.
_STILL_FOLLOWS: Final = f"""
NOT {_OWN % "'pending'"} OR EXISTS (SELECT 1 FROM ({_IN_FRONT})) OR NOT EXISTS (
  SELECT 1 FROM chat_messages AS b INDEXED BY idx_chat_messages_breaks
  WHERE b.tenant_id = {{5}} AND b.session_id = {{6}} AND b.breaks = 1 AND b.turn_index < {{3}})
"""

_OF_SESSION: Final = SESSION_OF_RUN.format("?1")
NEXT_IN_LINE: Final = f"""
(SELECT CASE WHEN coalesce(p.lease_expires_at <= {MOMENT.format("?6")}, 1) THEN p.run_id END
 FROM durable_runs AS p INDEXED BY idx_durable_runs_open CROSS JOIN chat_turns AS t ON t.run_id = p.run_id
 WHERE p.run_id > {_OF_SESSION} AND p.run_id < {_OF_SESSION} || '~' AND p.status IN ('pending', 'running')
   AND +p.status = 'pending'
 ORDER BY t.turn_index, t.version LIMIT 1) AS next_run_id
"""
"""A column of the write that ends a run: the next turn of the session, if no worker waits with that turn."""

# ?1 the turn's first version, ?2 and ?3 around the others, ?4 and ?5 around the session's runs, ?6 the tenant, ?7 the
# session, ?8 the index.  Behind an edit the thread goes on at its end, and not behind turns that are detached.
_TAKEN: Final = f"""
WITH open AS (SELECT turn_index FROM ({_OTHERS.format("''", "?4", "?5")})),
failed AS (
  SELECT {NUMBER_OF_RUN} AS turn_index FROM durable_runs INDEXED BY idx_durable_runs_failed_number
  WHERE {PREFIX_OF_RUN} = ?4 AND status = 'failed' ORDER BY 1 DESC LIMIT 1)
SELECT EXISTS (SELECT 1 FROM durable_runs WHERE (run_id = ?1 OR (run_id > ?2 AND run_id < ?3))
    AND status IN ('pending', 'running', 'suspended')) AS taken,
  1 + CASE WHEN EXISTS (SELECT 1 FROM chat_messages INDEXED BY idx_chat_messages_breaks
      WHERE tenant_id = ?6 AND session_id = ?7 AND breaks = 1)
    THEN (SELECT max(turn_index) FROM open)
    ELSE max(coalesce((SELECT max(turn_index) FROM open), -1), coalesce((SELECT turn_index FROM failed), -1),
      coalesce((SELECT max(turn_index) FROM chat_messages WHERE tenant_id = ?6 AND session_id = ?7), -1))
    END AS next_index,
  (SELECT json_group_array(json_array(turn_index, manifest_hash)) FROM chat_turns INDEXED BY idx_chat_turns_moved
   WHERE tenant_id = ?6 AND session_id = ?7 AND asked_at_index = ?8) AS moved
"""

# ?1 the project, ?2 now, ?3 how many.
_DUE_PENDING: Final = f"""
SELECT p.run_id FROM durable_runs AS p INDEXED BY idx_durable_runs_open
CROSS JOIN chat_turns AS t ON t.run_id = p.run_id
WHERE p.status IN ('pending', 'running') AND +p.status = 'pending' AND p.project_id = ?1
  AND coalesce(p.lease_expires_at <= {MOMENT.format("?2")}, 1)
  AND NOT EXISTS (
    SELECT 1 FROM durable_runs AS r INDEXED BY idx_durable_runs_open
    CROSS JOIN chat_turns AS o ON o.run_id = r.run_id
    WHERE r.run_id > {SESSION_OF_RUN.format("p.run_id")} AND r.run_id < {SESSION_OF_RUN.format("p.run_id")} || '~'
      AND r.status IN ('pending', 'running') AND r.run_id <> p.run_id
      AND (r.status = 'running' OR (o.turn_index, o.version) < (t.turn_index, t.version)))
  AND NOT EXISTS (
    SELECT 1 FROM durable_runs AS r INDEXED BY idx_durable_runs_suspended
    WHERE r.run_id > {SESSION_OF_RUN.format("p.run_id")} AND r.run_id < {SESSION_OF_RUN.format("p.run_id")} || '~'
      AND r.status = 'suspended')
ORDER BY p.updated_at LIMIT ?3
"""

# Behind the claim that has made a turn which waits: whoever runs is to stop, and what is suspended to go on and see it.
# A claim that found it there is about what ran when it came, which may be over.
_RUNNING_OTHERS: Final = f"""
SELECT run_id FROM ({_OTHERS.format("?1", "?5", "?6")}) WHERE status <> 'pending'
"""
_WAITS: Final = f"""
{HELD} AND EXISTS (
  SELECT 1 FROM durable_runs WHERE run_id = ?1 AND status = 'pending' AND updated_at = created_at)
"""
_INTERRUPT: Final = f"""
UPDATE chat_turns SET cancel_requested_at = coalesce(cancel_requested_at, {MOMENT.format("?4")})
WHERE run_id IN ({_RUNNING_OTHERS}) AND {_WAITS}
"""
_WAKE: Final = f"""
UPDATE durable_waits SET wake_at = {MOMENT.format("?4")} WHERE run_id IN ({_RUNNING_OTHERS}) AND {_WAITS}
"""

_PENDING: Final = "EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1 AND status = 'pending')"
_CANCEL_QUEUED: Final = (
    f"""
UPDATE chat_turns SET cancel_requested_at = coalesce(cancel_requested_at, {MOMENT.format("?2")}),
  cancelled_at = {MOMENT.format("?2")}, finish_reason = 'cancelled'
WHERE run_id = ?1 AND {_PENDING} RETURNING run_id
""",
    f"""
UPDATE chat_sessions SET revision = revision + 1
WHERE (tenant_id, session_id) IN (SELECT tenant_id, session_id FROM chat_turns WHERE run_id = ?1 AND {_PENDING})
""",
    f"""
INSERT INTO durable_steps (run_id, step_index, intent, kind, status, attempts, result_json, started_at, completed_at)
SELECT ?1, 0, 'chat:turn-' || turn_index, 'llm', 'completed', 0, json_object('finalText', '', 'cancelled', ?3),
       {MOMENT.format("?2")}, {MOMENT.format("?2")}
FROM chat_turns WHERE run_id = ?1 AND {_PENDING}
ON CONFLICT (run_id, step_index) DO UPDATE SET
  status = 'completed', result_json = excluded.result_json, error_json = NULL, completed_at = excluded.completed_at
""",
    f"""
UPDATE durable_runs SET status = 'completed', completed_at = {MOMENT.format("?2")}, updated_at = {MOMENT.format("?2")},
  outcome_json = '{{"pass":false,"notes":"cancelled"}}', lease_holder_id = NULL, lease_expires_at = NULL
WHERE run_id = ?1 AND status = 'pending'
""",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """
    What a turn waits for.

    Attributes:
        position: How many turns are in front.
        run_id: The run of the first turn in front; the attributes below are of this run.
        status: The run's status.
        turn_index: The turn's place in the session.
        left: Whether somebody has to go on with the run: its worker is lost, or its event has come.
        key: The event that the run waits for, if it is suspended.
        wake_at: When the run goes on even without its event.
    """

    position: int
    run_id: str
    status: str
    turn_index: int
    left: bool
    key: str | None
    wake_at: str | None

    @classmethod
    def of(cls, row: Row) -> Self | None:
        """Read what `its_turn` tells; None if there is nothing in front."""
        if row["front"] is None:
            return None
        front = json.loads(str(row["front"]))
        return cls(**{**front, "left": bool(front["left"]), "position": int(row["position"] or 0)})

    @property
    def waits_for_somebody(self) -> bool:
        """Whether it is suspended, and nothing has come yet."""
        return self.status == RunStatus.SUSPENDED and not self.left


def _params(identity: ChatTurnIdentity) -> tuple[Value, ...]:
    session = session_run_ids(identity.tenant_id, identity.session_id)
    return (turn_run_id(identity), *session, identity.turn_index, identity.version, NOW)


def its_turn(identity: ChatTurnIdentity) -> Condition:
    """Let a turn begin once nothing is in front of it; a turn that was begun goes on."""
    return Condition(sql=_ITS_TURN, params=_params(identity), told=_TOLD)


def begins_now(identity: ChatTurnIdentity) -> Guard:
    """Let a turn begin only if nothing is in front of it."""
    run_id = turn_run_id(identity)
    turn = its_turn(identity)
    return _of_start(turn.sql, turn.params, lambda _row: SessionBusy("others are before it", run_id=run_id))


def idle(identity: ChatTurnIdentity) -> Guard:
    """Let a new turn begin only in a session in which no other turn is open."""
    run_id = turn_run_id(identity)
    params = (run_id, *session_run_ids(identity.tenant_id, identity.session_id))
    return _of_start(_IDLE, params, lambda row: _busy(row["other"], run_id), told=_WHOSE)


def room(identity: ChatTurnIdentity, most: int) -> Guard:
    """Let a turn wait only while fewer than *most* of its session do."""
    run_id = turn_run_id(identity)
    return _of_start(_ROOM, (*_params(identity), most), lambda _row: QueueFull(f"{most} wait", run_id=run_id))


def not_passed(identity: ChatTurnIdentity, theirs: Theirs | None) -> Guard:
    """Let a turn be begun, or be tried again, only while the thread has not gone on without it."""
    run_id = turn_run_id(identity)
    session = session_run_ids(identity.tenant_id, identity.session_id)

    def refusal(row: Row) -> Exception:
        if row["answered"]:
            return TurnPassed("later turns have answers", run_id=run_id)
        return _busy(row["other"], run_id)

    place = (identity.turn_index, identity.tenant_id, identity.session_id)
    params = (run_id, *session, *place, None if theirs is None else theirs.run_id)
    return _of_start(_NOT_PASSED, params, refusal, told=_PASSED_BY)


def still_follows(identity: ChatTurnIdentity) -> Guard:
    """Begin a turn that waited only while no message before it is marked as broken off: else it is in no thread."""
    run_id = turn_run_id(identity)
    params = (*_params(identity)[:-1], identity.tenant_id, identity.session_id)
    return _of_start(_STILL_FOLLOWS, params, lambda _row: VersionConflict("the thread ends before it", run_id=run_id))


def still_there(identity: ChatTurnIdentity) -> Guard:
    """Begin a turn that was asked before only while it is there: its session may have been deleted."""
    run_id = turn_run_id(identity)
    exists = "EXISTS (SELECT 1 FROM durable_runs WHERE run_id = {0})"
    return _of_start(exists, (run_id,), lambda _row: RunNotFound("it was deleted", run_id=run_id))


def _of_start(sql: str, params: tuple[Value, ...], refusal: Callable[[Row], Exception], told: str = "") -> Guard:
    return Guard(sql=sql, params=params, told=told, refusal=refusal, only_for_start=True)


def _busy(other: Value, run_id: str) -> SessionBusy:
    return SessionBusy("another turn of the session is open", run_id=run_id if other is None else str(other))


def interrupt(identity: ChatTurnIdentity) -> list[Statement]:
    """Ask for what is in front of a turn to be stopped, with the claim; it does so if that has made the turn."""
    session = session_run_ids(identity.tenant_id, identity.session_id)
    return [Statement(_INTERRUPT, (NOW, *session)), Statement(_WAKE, (NOW, *session))]


def cancel_queued(run_id: str, reason: str) -> list[Statement]:
    """End a turn that has not begun, for good and without a message; the first returns a row if there was one."""
    texts = zip(_CANCEL_QUEUED, ((NOW,), (), (NOW, reason), (NOW,)), strict=True)
    return [Statement(text, (run_id, *params)) for text, params in texts]


def read_due_pending(project_id: str, limit: int) -> Statement:
    """Read the pending turns that may begin and that nobody waits with, the longest waiting first."""
    return Statement(_DUE_PENDING, (project_id, NOW, limit))


def read_taken(identity: ChatTurnIdentity) -> Statement:
    """Read whether another message is open at a turn's place, the next index, and what was asked there and moved on."""
    session = session_run_ids(identity.tenant_id, identity.session_id)
    place = (identity.tenant_id, identity.session_id, identity.turn_index)
    return Statement(_TAKEN, (*version_run_ids(identity), *session, *place))
