"""
The SQL of turns that agent-runtime has begun, beyond their claim; see `chatturn.durable.sql.adoption`.

Such a turn has a run and a step, and nothing else: no row of the turn, no log, and no messages, since no table of
agent-runtime has the question.  Its run has agent-runtime's id; or our id, where the turn was stopped here.
"""

from dataclasses import dataclass
from typing import Final

from chatturn.chat.thread.identity import ChatTurnIdentity, session_run_ids, turn_intent, turn_run_id
from chatturn.database.api import NOW, Statement
from chatturn.durable.records import RunOutcome
from chatturn.durable.sql.adoption import answered, either, text_of
from chatturn.durable.sql.runs import MOMENT
from chatturn.jsontext.stored import json_text

__all__ = ["FINISHED_THERE", "Theirs", "cancel_theirs", "read_latest_of_theirs", "read_theirs"]


@dataclass(frozen=True, slots=True)
class Theirs:
    """
    Where agent-runtime may have a turn.

    Attributes:
        run_id: Agent-runtime's id of the run.
        project_id: The deployment's project; a run of another project is not the turn.
    """

    run_id: str
    project_id: str


_NO_TURN_OF_OURS: Final = "NOT EXISTS (SELECT 1 FROM chat_turns AS o WHERE o.run_id = r.run_id)"

FINISHED_THERE: Final = f"""
r.run_id = {either("{theirs}")} AND r.project_id = {{project}} AND r.status = 'completed' AND {_NO_TURN_OF_OURS}
  AND (r.run_id = ?1 OR {answered("r.run_id")})
"""
"""The SQL of whether the run ``r`` is agent-runtime's turn of run ``?1``, and is over: to be formatted."""

# ?1 our run, ?2 theirs, ?3 the project, ?4 now.
_READ: Final = f"""
SELECT r.run_id, r.status, r.epoch, r.created_at, r.completed_at, r.outcome_json ->> '$.notes' AS outcome,
  {text_of("s.")} AS text, CASE WHEN r.run_id = ?1 THEN s.result_json ->> '$.cancelled' END AS cancelled,
  CAST((julianday(r.lease_expires_at) - julianday({MOMENT.format("?4")})) * 86400000 AS INTEGER) AS lease_left_ms
FROM durable_runs AS r LEFT JOIN durable_steps AS s
  ON s.run_id = r.run_id AND s.step_index = 0 AND s.status = 'completed'
WHERE r.run_id = {either("?2")} AND r.project_id = ?3 AND {_NO_TURN_OF_OURS}
"""

# A run that failed and is being tried again has a lease, while its status is still 'failed'.
# ?1 our run, ?2 theirs, ?3 the project, ?4 now.
_STOPPABLE: Final = f"""
EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?2 AND project_id = ?3 AND (status IN ('running', 'suspended')
  OR (status = 'failed' AND lease_holder_id IS NOT NULL AND lease_expires_at > {MOMENT.format("?4")})))
AND NOT EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1) AND NOT {answered("?2")}
"""

# ?5 the step's intent, ?6 its result.
_END_STEP: Final = f"""
INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, attempts, result_json, started_at,
                           completed_at)
SELECT ?1, 0, ?5, 'llm', coalesce((SELECT input_hash FROM durable_steps WHERE run_id = ?2 AND step_index = 0), ''),
  'completed', 1, ?6, {MOMENT.format("?4")}, {MOMENT.format("?4")} WHERE {_STOPPABLE}
"""
_TAKE_AWAY: Final = (
    f"DELETE FROM durable_steps WHERE run_id = ?2 AND {_STOPPABLE}",
    f"UPDATE durable_events SET run_id = ?1 WHERE run_id = ?2 AND {_STOPPABLE}",
)

# The last statement, since it changes the run's id by which the others find the run.  ?5 the run's outcome.
_END_RUN: Final = f"""
UPDATE durable_runs SET run_id = ?1, status = 'completed', completed_at = {MOMENT.format("?4")},
  updated_at = {MOMENT.format("?4")}, outcome_json = ?5, lease_holder_id = NULL, lease_expires_at = NULL
WHERE run_id = ?2 AND {_STOPPABLE} RETURNING run_id
"""

_LONGEST_SESSION: Final = 10_000

# From the turn behind the latest of ours on: a session's indexes have no gaps.
# ?1 what agent-runtime's ids of the session begin with, ?2 the project, ?3 and ?4 around our runs of the session.
_LATEST: Final = f"""
WITH RECURSIVE turns (turn_index, is_theirs) AS (
  SELECT coalesce((SELECT max(turn_index) FROM chat_turns WHERE run_id > ?3 AND run_id < ?4), -1), 0
  UNION ALL SELECT turn_index + 1, 1 FROM turns
  WHERE EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1 || (turns.turn_index + 1) AND project_id = ?2)
  LIMIT {_LONGEST_SESSION})
SELECT max(turn_index) AS latest FROM turns WHERE is_theirs
"""


def read_theirs(identity: ChatTurnIdentity, theirs: Theirs) -> Statement:
    """Read where agent-runtime's turn stands; no row where there is none, or where we have adopted it."""
    return Statement(_READ, (turn_run_id(identity), theirs.run_id, theirs.project_id, NOW))


def cancel_theirs(identity: ChatTurnIdentity, theirs: Theirs, reason: str) -> list[Statement]:
    """
    Stop a turn that agent-runtime is answering, or has left: take the run away from its worker, and end it.

    Its worker reads no wish to stop, and finds no run to write to; no table has the text so far.  The last statement
    returns a row if the turn was stopped: a turn that is over stays as it is.
    """
    result = json_text({"finalText": "", "cancelled": reason}, "the turn's result")
    outcome = RunOutcome(passed=False, notes="cancelled", metadata={"chars": 0})
    place = (turn_run_id(identity), theirs.run_id, theirs.project_id, NOW)
    return [
        Statement(_END_STEP, (*place, turn_intent(identity), result)),
        *(Statement(each, place) for each in _TAKE_AWAY),
        Statement(_END_RUN, (*place, json_text(outcome.to_json(), "the outcome"))),
    ]


def read_latest_of_theirs(tenant_id: str, session_id: str, project_id: str) -> Statement:
    """Read the highest index of agent-runtime's turns of a session that are behind all of ours; null for none."""
    return Statement(_LATEST, (f"chat:{session_id}:", project_id, *session_run_ids(tenant_id, session_id)))
