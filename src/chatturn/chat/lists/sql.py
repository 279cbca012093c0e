"""The SQL of lists for people; each page is read off an index, so that it costs the same in a list of any length."""

from collections.abc import Sequence
from json import dumps
from typing import Final

from chatturn.chat.thread.identity import ChatTurnIdentity, session_run_ids
from chatturn.chat.thread.session_sql import OWNER_OF_TURN
from chatturn.chat.thread.version_sql import ATTACHED
from chatturn.database.api import NOW, Statement
from chatturn.durable.sql.run_lists import NUMBER_OF_RUN, PREFIX_OF_RUN
from chatturn.durable.sql.runs import MOMENT

__all__ = [
    "read_latest_turn",
    "read_lost_turns",
    "read_messages",
    "read_open_runs",
    "read_open_turns",
    "read_questions",
    "read_recent_turn",
    "read_turns",
    "read_undelivered",
]

_END: Final = 2**31

MOST_LISTED_CHARACTERS: Final = 4_096
"""The longest address of a message's part in a list; in place of a longer address stands its length."""

SHOWN_PARTS: Final = f"""
(SELECT json_group_array(json(
   CASE WHEN length(value ->> '$.url') > {MOST_LISTED_CHARACTERS}
        THEN json_set(json_remove(value, '$.url'), '$.characters', length(value ->> '$.url')) ELSE value END))
 FROM json_each(t.parts_json) WHERE t.parts_json IS NOT NULL)
"""

_PAGE_CHARACTERS: Final = 1_000_000
"""A page of messages ends with the turn that brings it to so many characters: 200 turns may have 300 MB."""

# One turn more than wanted, which tells whether there is a page of older messages.  ?5 the most characters: of a turn
# behind them only its index is read.
_MESSAGES: Final = f"""
SELECT m.turn_index, m.role, CASE WHEN p.newer < ?5 THEN m.content END AS content, m.created_at, m.run_id,
  t.cancelled_at IS NOT NULL AS cancelled, t.finish_reason, m.version,
  CASE WHEN m.role = 'user' AND p.newer < ?5 THEN {SHOWN_PARTS} END AS parts_json
FROM (
  SELECT turn_index, role, coalesce(sum(characters) OVER (
    ORDER BY turn_index DESC RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS newer
  FROM (
    SELECT m.turn_index, m.role, length(m.content) AS characters FROM chat_messages AS m
    WHERE m.tenant_id = ?1 AND m.session_id = ?2 AND m.{ATTACHED.strip()}
    ORDER BY m.turn_index DESC, m.role ASC LIMIT ?4)) AS p
CROSS JOIN chat_messages AS m
  ON m.tenant_id = ?1 AND m.session_id = ?2 AND m.turn_index = p.turn_index AND m.role = p.role
LEFT JOIN chat_turns AS t ON t.run_id = m.run_id
ORDER BY m.turn_index DESC, m.role ASC
"""

_MOST_OPEN: Final = 20

_FAILED_LOOKED_AT: Final = 50
"""Of a session's failed turns the latest: a turn may have failed and have an answer, by another version."""

_FIRST_BREAK: Final = """
SELECT min(turn_index) FROM chat_messages INDEXED BY idx_chat_messages_breaks
WHERE tenant_id = ?3 AND session_id = ?4 AND breaks = 1
"""

# A session's runs are neighbours in each index: their ids begin alike.  A turn that was superseded and has no new
# answer yet is listed; a cancelled turn is not.  ?1 and ?2 around the session's runs, ?3 the tenant, ?4 the session.
_OPEN_TURNS: Final = f"""
SELECT t.turn_index, t.user_message, r.status, t.created_at, {SHOWN_PARTS} AS parts_json
FROM (
  SELECT run_id, status FROM durable_runs INDEXED BY idx_durable_runs_open
  WHERE run_id > ?1 AND run_id < ?2 AND status IN ('pending', 'running')
  UNION ALL SELECT run_id, status FROM durable_runs INDEXED BY idx_durable_runs_suspended
  WHERE run_id > ?1 AND run_id < ?2 AND status = 'suspended'
  UNION ALL SELECT run_id, 'failed' FROM (
    SELECT run_id, {NUMBER_OF_RUN} AS number FROM durable_runs INDEXED BY idx_durable_runs_failed_number
    WHERE {PREFIX_OF_RUN} = ?1 AND {NUMBER_OF_RUN} <= coalesce(({_FIRST_BREAK}), {_END}) AND status = 'failed'
    ORDER BY 2 DESC LIMIT {_FAILED_LOOKED_AT}) AS f
  WHERE NOT EXISTS (
    SELECT 1 FROM chat_messages WHERE tenant_id = ?3 AND session_id = ?4 AND turn_index = f.number)) AS r
CROSS JOIN chat_turns AS t ON t.run_id = r.run_id
ORDER BY t.turn_index DESC LIMIT {_MOST_OPEN}
"""

# The open turns of a session, in the order in which they go on.
_OPEN_RUNS: Final = f"""
SELECT r.run_id, r.status, coalesce(r.lease_expires_at <= {MOMENT.format("?3")}, 1) AS orphaned, t.turn_index, t.version
FROM durable_runs AS r INDEXED BY idx_durable_runs_open CROSS JOIN chat_turns AS t ON t.run_id = r.run_id
WHERE r.run_id > ?1 AND r.run_id < ?2 AND r.status IN ('pending', 'running')
UNION ALL
SELECT run_id, status, 0, 0, 0 FROM durable_runs INDEXED BY idx_durable_runs_suspended
WHERE run_id > ?1 AND run_id < ?2 AND status = 'suspended'
ORDER BY turn_index, version
"""

# A run that is no turn of ours, such as one of agent-runtime or of a harness, cannot be resumed and is left out.
_LOST_TURNS: Final = f"""
SELECT r.run_id FROM durable_runs AS r
WHERE r.lease_expires_at <= {MOMENT.format("?2")} AND +r.project_id = ?1 AND +r.status = 'running'
  AND EXISTS (SELECT 1 FROM chat_turns AS t WHERE t.run_id = r.run_id)
ORDER BY r.lease_expires_at LIMIT ?3
"""

# The turn that is being answered, else the last turn that is in the thread.
_LATEST_TURN: Final = f"""
WITH until AS (SELECT coalesce(({_FIRST_BREAK}), {_END}) AS turn_index)
SELECT coalesce(
  (SELECT max(t.turn_index) FROM durable_runs AS r INDEXED BY idx_durable_runs_open
   CROSS JOIN chat_turns AS t ON t.run_id = r.run_id
   WHERE r.run_id > ?1 AND r.run_id < ?2 AND r.status IN ('pending', 'running')),
  (SELECT max(turn_index) FROM (
    SELECT turn_index FROM (
      SELECT turn_index FROM chat_messages WHERE tenant_id = ?3 AND session_id = ?4
        AND turn_index < (SELECT turn_index FROM until) ORDER BY turn_index DESC LIMIT 1)
    UNION ALL SELECT t.turn_index FROM durable_runs AS r INDEXED BY idx_durable_runs_suspended
      CROSS JOIN chat_turns AS t ON t.run_id = r.run_id
      WHERE r.run_id > ?1 AND r.run_id < ?2 AND r.status = 'suspended'
        AND t.turn_index < (SELECT turn_index FROM until)
    UNION ALL SELECT number FROM (
      SELECT {NUMBER_OF_RUN} AS number FROM durable_runs INDEXED BY idx_durable_runs_failed_number
      WHERE {PREFIX_OF_RUN} = ?1 AND {NUMBER_OF_RUN} < (SELECT turn_index FROM until) AND status = 'failed'
      ORDER BY 1 DESC LIMIT 1)))) AS latest
"""

# Of a question that is not as long as the one it is compared with (?4, lengths by the turns' indexes) only that: a
# thread may have hundreds of megabytes, and the request that brings it has one at most.
_QUESTIONS: Final = f"""
SELECT turn_index,
  CASE WHEN length(content) = json_extract(?4, '$[' || turn_index || ']') THEN content END AS content
FROM chat_messages
WHERE tenant_id = ?1 AND session_id = ?2 AND role = 'user' AND {ATTACHED.strip()}
"""

_RECENT_TURN: Final = f"""
SELECT session_id FROM chat_turns
WHERE run_id > ?1 AND run_id < ?2 AND tenant_id = ?3 AND created_at >= {MOMENT.format("?4, ?5")}
ORDER BY created_at DESC, run_id DESC LIMIT 1
"""

_TURNS: Final = f"""
SELECT r.run_id, t.tenant_id, t.session_id, t.user_id, t.turn_index, t.model, t.trace_id,
  CASE WHEN t.run_id IS NOT NULL THEN t.cancelled_at
       WHEN r.outcome_json ->> '$.notes' = 'cancelled' THEN r.completed_at END AS cancelled_at,
  r.status = 'running' AND r.lease_expires_at <= {MOMENT.format("?2")} AS orphaned,
  (SELECT json_group_array(json_object('hook', o.hook, 'status', o.status, 'failures', o.failures,
                                       'nextCallAt', o.next_call_at, 'lastError', o.last_error))
   FROM (SELECT * FROM chat_outbox WHERE run_id = t.run_id AND status <> 'done' ORDER BY hook DESC) AS o)
    AS hooks_json, CASE WHEN ?3 THEN {OWNER_OF_TURN} END AS owner_id
FROM durable_runs AS r LEFT JOIN chat_turns AS t ON t.run_id = r.run_id
WHERE r.run_id IN (SELECT value FROM json_each(?1))
"""

# ?1 the project, ?2 and ?3 the moment and the run after which the page begins, ?4 how many, ?5 the tenant or null.
_UNDELIVERED: Final = """
SELECT o.next_call_at, r.* FROM ({sources}) AS o
JOIN durable_runs AS r ON r.run_id = o.run_id
ORDER BY o.next_call_at, o.run_id LIMIT ?4
"""

# Each source is filtered before its LIMIT: another tenant's rows must take no place on the page.
_SOURCE: Final = """
SELECT * FROM (SELECT o.run_id, o.next_call_at FROM chat_outbox AS o
  CROSS JOIN durable_runs AS r ON r.run_id = o.run_id AND r.project_id = ?1
  WHERE o.status = '{status}' AND o.failures > 0 AND NOT EXISTS (
      SELECT 1 FROM chat_outbox AS p WHERE p.run_id = o.run_id AND p.hook > o.hook AND p.failures > 0
        AND p.status IN ('pending', 'given_up'))
    AND o.next_call_at >= ?2 AND (o.next_call_at > ?2 OR o.run_id > ?3)
    AND (?5 IS NULL OR EXISTS (SELECT 1 FROM chat_turns AS t WHERE t.run_id = o.run_id AND t.tenant_id = ?5))
  ORDER BY o.next_call_at, o.run_id LIMIT ?4)
"""

# Calls with `failures` = 0 are left out: they are on their way, wait behind another call, or were given up with it.
# Of a run's failed calls the last by name stands for the run, so that each run is listed once.
_READ_UNDELIVERED: Final = _UNDELIVERED.format(
    sources=" UNION ALL ".join(_SOURCE.format(status=status) for status in ("pending", "given_up"))
)


def read_messages(tenant_id: str, session_id: str, before: int | None, turns: int) -> Statement:
    """
    Read the messages of *turns* turns and of one more, newest first.

    A message whose content is null is of a turn that has no room on the page; the first turn has in any case.
    """
    newest = _END if before is None else before
    return Statement(_MESSAGES, (tenant_id, session_id, newest, 2 * turns + 2, _PAGE_CHARACTERS))


def read_open_turns(tenant_id: str, session_id: str) -> Statement:
    """Read the turns of a session without an answer, newest first."""
    return Statement(_OPEN_TURNS, (*session_run_ids(tenant_id, session_id), tenant_id, session_id))


def read_open_runs(first_run_id: str, last_run_id: str) -> Statement:
    """Read the runs that are not over and whose ids are between two texts, and whether a worker has them."""
    return Statement(_OPEN_RUNS, (first_run_id, last_run_id, NOW))


def read_turns(run_ids: Sequence[str], *, owners: bool) -> Statement:
    """Read the turns of runs, with their hook calls that have not succeeded, and whose their sessions are if asked."""
    return Statement(_TURNS, (dumps(list(run_ids)), NOW, int(owners)))


def read_lost_turns(project_id: str, limit: int) -> Statement:
    """Read the turns of a project whose worker is lost, the longest lost first."""
    return Statement(_LOST_TURNS, (project_id, NOW, limit))


def read_undelivered(project_id: str, moment: str, run_id: str, limit: int, tenant_id: str | None) -> Statement:
    """Read runs whose hook calls have failed and must still be made, or were given up."""
    return Statement(_READ_UNDELIVERED, (project_id, moment, run_id, limit, tenant_id))


def read_latest_turn(tenant_id: str, session_id: str) -> Statement:
    """Read the index of a session's turn that is being answered, else of its last turn; null if it has none."""
    return Statement(_LATEST_TURN, (*session_run_ids(tenant_id, session_id), tenant_id, session_id))


def read_questions(identity: ChatTurnIdentity, lengths: Sequence[int]) -> Statement:
    """
    Read the user's answered questions in a session before a turn.

    A question that is not as long as *lengths* say by its turn's index is null.
    """
    whose = (identity.tenant_id, identity.session_id, identity.turn_index)
    return Statement(_QUESTIONS, (*whose, dumps(list(lengths))))


def read_recent_turn(first: str, last: str, tenant_id: str, within_s: int) -> Statement:
    """Read the session of the latest turn among the sessions whose runs' ids are between two texts."""
    return Statement(_RECENT_TURN, (first, last, tenant_id, NOW, f"-{within_s} seconds"))
