"""
The SQL of the chat tables, as statements that join the claim's and the finish's transactions.

In fenced ones ``?1`` to ``?3`` are the lease (see `chatturn.durable.sql.runs`); their own parameters start
at ``?4``.
"""

import json
from collections.abc import Sequence
from typing import Final

from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.thread.their_sql import Theirs
from chatturn.chat.thread.version_sql import ATTACHED
from chatturn.database.api import NOW, Statement
from chatturn.durable.context import EVENT_STEP
from chatturn.durable.ends import Cancelled, Completed, End, Suspended
from chatturn.durable.sql.adoption import answered, either
from chatturn.durable.sql.runs import HELD, LOAD_EVENT, MOMENT

__all__ = [
    "FAILURE_ON_RECORD",
    "MAY_BE_TRIED",
    "approve",
    "begin_turn",
    "end_turn",
    "forget_checkpoints",
    "forget_messages",
    "give",
    "read_asked_runs",
    "read_history",
    "read_place",
    "read_turn",
    "read_turn_input",
    "record_messages",
    "wake_cancelled",
]

# Another answer begins where the manifest changes, which only a claim that supersedes can do.
_ANEW: Final = "chat_turns.manifest_hash <> excluded.manifest_hash"

# All attempts at one answer share a trace; it begins with the first attempt that is traced.
_TRACED_HERE: Final = f"chat_turns.traceparent IS NULL OR {_ANEW}"

# A log begins anew behind an attempt that has ended, and with another answer: the lines before it are history.
_BEGIN_TURN: Final = f"""
INSERT INTO chat_turns (run_id, tenant_id, session_id, user_id, turn_index, user_message, model, metadata_json,
                        trace_id, traceparent, caller_span_id, attempt, first_attempt, manifest_hash, created_at,
                        updated_at, history_json, parameters_json, parts_json)
SELECT ?1, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13,
  max(epoch, 1), epoch + (status = 'pending'), manifest_hash, updated_at, updated_at, ?14, ?15, ?16
FROM durable_runs WHERE run_id = ?1 AND {HELD}
ON CONFLICT (run_id) DO UPDATE SET
  user_id = excluded.user_id, user_message = excluded.user_message, model = excluded.model,
  metadata_json = excluded.metadata_json, history_json = excluded.history_json,
  parameters_json = excluded.parameters_json, parts_json = excluded.parts_json, kept_json = NULL,
  attempt = excluded.attempt,
  updated_at = excluded.updated_at, cancelled_at = NULL, finish_reason = NULL, retry_at = NULL, log_compact = 0,
  log_kept = 1,
  manifest_hash = excluded.manifest_hash,
  first_attempt = CASE WHEN {_ANEW} THEN excluded.first_attempt ELSE first_attempt END,
  suspensions = CASE WHEN {_ANEW} THEN 0 ELSE suspensions END,
  trace_id = CASE WHEN {_TRACED_HERE} THEN excluded.trace_id ELSE trace_id END,
  traceparent = CASE WHEN {_TRACED_HERE} THEN excluded.traceparent ELSE traceparent END,
  caller_span_id = CASE WHEN {_TRACED_HERE} THEN excluded.caller_span_id ELSE caller_span_id END,
  traced_by = CASE WHEN {_TRACED_HERE} THEN NULL ELSE traced_by END,
  cancel_requested_at = CASE WHEN {_ANEW} THEN NULL ELSE cancel_requested_at END,
  log_from = coalesce((
    SELECT CASE WHEN ended OR {_ANEW} THEN last_seq + 1 END FROM chat_segments
    WHERE run_id = ?1 ORDER BY first_seq DESC LIMIT 1), log_from)
"""

# Where the log ends, what is known of the earlier attempts, and the turn's trace.
_READ_PLACE: Final = """
SELECT t.cancel_requested_at, r.idle_attempts, r.attempts, t.first_attempt, t.log_from, s.last_seq, s.attempt, s.ended,
  t.traceparent, t.caller_span_id, t.traced_by, t.created_at, t.finish_reason, t.replaces,
  CASE WHEN s.ended THEN s.attempt
       ELSE (SELECT max(attempt) FROM chat_segments WHERE run_id = ?1 AND ended) END AS last_ended
FROM chat_turns AS t JOIN durable_runs AS r ON r.run_id = t.run_id LEFT JOIN (
  SELECT last_seq, attempt, ended FROM chat_segments WHERE run_id = ?1 ORDER BY first_seq DESC LIMIT 1) AS s
WHERE t.run_id = ?1
"""

# With the attempt's last write: what the attempt leaves for the next attempt, or for good.
_END_ANSWERED: Final = f"UPDATE chat_turns SET finish_reason = ?4, kept_json = ?5 WHERE run_id = ?1 AND {HELD}"
_END_WAITING: Final = f"UPDATE chat_turns SET retry_at = {MOMENT.format('?4, ?5')} WHERE run_id = ?1 AND {HELD}"
_END_CANCELLED: Final = f"""
UPDATE chat_turns SET cancelled_at = {MOMENT.format("?4")}, finish_reason = 'cancelled' WHERE run_id = ?1 AND {HELD}
"""
_END_SUSPENDED: Final = f"UPDATE chat_turns SET suspensions = suspensions + 1 WHERE run_id = ?1 AND {HELD}"

# A wait that somebody wants stopped is over; so the sweep finds the turn even if the worker that asked dies.
_WAKE: Final = f"""
UPDATE durable_waits SET wake_at = {MOMENT.format("{moment}")} WHERE run_id = ?1
AND EXISTS (SELECT 1 FROM chat_turns WHERE run_id = ?1 AND cancel_requested_at IS NOT NULL)
"""
_WAKE_SUSPENDED: Final = f"{_WAKE.format(moment='?4')} AND {HELD}"
_WAKE_CANCELLED: Final = _WAKE.format(moment="?2")

# Newest first, so that the limit keeps the latest; within a turn the assistant's row sorts before the user's.
_HISTORY: Final = f"""
SELECT m.turn_index, m.role, m.content, t.finish_reason, t.kept_json, t.parts_json IS NOT NULL AS has_parts,
  CASE WHEN m.role = 'user' AND length(t.parts_json) <= ?6 THEN t.parts_json END AS parts_json
FROM chat_messages AS m LEFT JOIN chat_turns AS t ON t.run_id = m.run_id
WHERE m.tenant_id = ?1 AND m.session_id = ?2 AND m.{ATTACHED.strip()}
ORDER BY m.turn_index DESC, m.role ASC
LIMIT CASE WHEN EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?4 AND status = 'completed') THEN 0 ELSE ?5 END
"""

_MESSAGES: Final = f"""
INSERT INTO chat_messages (tenant_id, session_id, turn_index, role, content, run_id, created_at, version)
SELECT t.tenant_id, t.session_id, t.turn_index, m.role, m.content, t.run_id, {MOMENT.format("?5")}, t.version
FROM chat_turns AS t
JOIN (SELECT 'user' AS role, user_message AS content FROM chat_turns WHERE run_id = ?1
      UNION ALL SELECT 'assistant', ?4) AS m
WHERE t.run_id = ?1 AND {HELD}
ON CONFLICT (tenant_id, session_id, turn_index, role) DO UPDATE SET
  content = excluded.content, created_at = excluded.created_at, run_id = excluded.run_id, version = excluded.version
"""

_FORGET_MESSAGES: Final = f"""
DELETE FROM chat_messages WHERE (tenant_id, session_id, turn_index) IN (
  SELECT tenant_id, session_id, turn_index FROM chat_turns WHERE run_id = ?1) AND {HELD}
"""

# The checkpoints on the way to an answer; step 0 is the turn itself, and holds the answer.
_FORGET_CHECKPOINTS: Final = f"DELETE FROM durable_steps WHERE run_id = ?1 AND step_index > 0 AND {HELD}"

# An approval, or a client's result, counts while the wait for it is open and nobody wants the turn stopped.  ?1 the
# run, ?2 the key, ?3 the payload, ?4 now.  The log knows everything that was ever asked for, in a superseded answer,
# too.
_GIVE: Final = f"""
INSERT OR IGNORE INTO durable_events (run_id, key, payload_json, emitted_at)
SELECT ?1, ?2, ?3, {MOMENT.format("?4")}
FROM durable_steps AS s JOIN durable_runs AS r ON r.run_id = s.run_id JOIN chat_turns AS t ON t.run_id = s.run_id
WHERE s.run_id = ?1 AND s.intent = '{EVENT_STEP}' || ?2 AND s.status = 'running'
  AND r.status IN ('running', 'suspended') AND t.cancel_requested_at IS NULL
"""
_WAS_ASKED: Final = f"""
SELECT EXISTS (SELECT 1 FROM durable_steps WHERE run_id = ?1 AND intent = '{EVENT_STEP}' || ?2)
  OR EXISTS (SELECT 1 FROM chat_segments WHERE run_id = ?1 AND instr(lines, '"key":' || ?3)) AS asked
"""

# The runs of tenant ?2 that have asked a client for calls in ?1.  The bounds let SQLite use the index.
_READ_ASKED_RUNS: Final = f"""
SELECT s.run_id, t.session_id, substr(s.intent, {len(EVENT_STEP) + 1}) AS key
FROM durable_steps AS s INDEXED BY idx_durable_steps_tool CROSS JOIN chat_turns AS t ON t.run_id = s.run_id
WHERE s.intent IN (SELECT '{EVENT_STEP}' || value FROM json_each(?1))
  AND s.intent >= '{EVENT_STEP}tool:' AND s.intent < '{EVENT_STEP}tool;' AND t.tenant_id = ?2
"""

# ``{0}`` the run, ``{1}`` its manifest, ``{2}`` now: see `chatturn.durable.store.Guard`.
MAY_BE_TRIED: Final = f"""
NOT EXISTS (SELECT 1 FROM chat_turns AS t JOIN durable_runs AS r ON r.run_id = t.run_id
  WHERE t.run_id = {{0}} AND r.status = 'failed' AND t.manifest_hash = {{1}} AND t.retry_at > {MOMENT.format("{2}")})
"""

FAILURE_ON_RECORD: Final = f"""
(SELECT epoch FROM durable_runs WHERE run_id = {{0}}) AS epoch,
(SELECT created_at FROM durable_runs WHERE run_id = {{0}}) AS created_at,
(SELECT outcome_json ->> '$.notes' FROM durable_runs WHERE run_id = {{0}}) AS code,
(SELECT CAST((julianday(retry_at) - julianday({MOMENT.format("{2}")})) * 86400000 AS INTEGER)
 FROM chat_turns WHERE run_id = {{0}}) AS wait_ms
"""

_READ_TURN_INPUT: Final = """
SELECT t.tenant_id, t.session_id, t.user_id, t.turn_index, t.version, t.user_message, t.model, t.metadata_json,
  t.history_json, t.parameters_json, t.parts_json, r.status
FROM chat_turns AS t JOIN durable_runs AS r ON r.run_id = t.run_id WHERE t.run_id = ?1
"""

# A turn of agent-runtime has no row of its own: its run says whether it was stopped here.  An empty answer is none.
_READ_TURN: Final = f"""
SELECT r.*, t.model, t.finish_reason, t.version,
  CASE WHEN t.run_id IS NOT NULL THEN t.cancelled_at
       WHEN r.outcome_json ->> '$.notes' = 'cancelled' THEN r.completed_at END AS cancelled_at,
  r.run_id = ?2 AND r.status = 'completed' AND NOT {answered("?2")} AS unanswered
FROM durable_runs AS r LEFT JOIN chat_turns AS t ON t.run_id = r.run_id
WHERE r.run_id = {either("?2")} AND (?3 IS NULL OR r.run_id = ?1 OR r.project_id = ?3)
"""


def begin_turn(
    identity: ChatTurnIdentity,
    *,
    user_message: str,
    model: str | None,
    metadata_json: str | None,
    history_json: str | None = None,
    parameters_json: str | None = None,
    parts_json: str | None = None,
    trace: Sequence[str | None] = (None, None, None),
) -> Statement:
    """
    Record who asks what, with the claim.

    Args:
        identity: The turn.
        user_message: The user's message.
        model: The model, if the request names one.
        metadata_json: The caller's metadata.
        history_json: The conversation before, where the request brings it.
        parameters_json: How the model is to answer, where the request says so.
        parts_json: The message's parts, where it is more than text.
        trace: The trace, the turn's span as a ``traceparent``, and the span around it, for a turn that has none yet.
    """
    return Statement(
        _BEGIN_TURN,
        (
            identity.tenant_id,
            identity.session_id,
            identity.user_id,
            identity.turn_index,
            user_message,
            model,
            metadata_json,
            *trace,
            history_json,
            parameters_json,
            parts_json,
        ),
    )


def read_place(run_id: str) -> Statement:
    """Read where the turn stands: where its log ends, whether somebody asked to stop it, and what its trace is."""
    return Statement(_READ_PLACE, (run_id,))


def end_turn(end: End, finish_reason: str | None, wait_ms: int, kept_json: str | None) -> list[Statement]:
    """Note how an attempt ended, with its last write; nothing for one that failed and may be tried again at once."""
    if isinstance(end, Completed):
        return [Statement(_END_ANSWERED, (finish_reason, kept_json))]
    if isinstance(end, Cancelled):
        return [Statement(_END_CANCELLED, (NOW,))]
    if isinstance(end, Suspended):
        return [Statement(_END_SUSPENDED), Statement(_WAKE_SUSPENDED, (NOW,))]
    return [Statement(_END_WAITING, (NOW, f"+{wait_ms / 1000:.3f} seconds"))] if wait_ms else []


def wake_cancelled(run_id: str) -> Statement:
    """Let a suspended turn go on that somebody wants stopped."""
    return Statement(_WAKE_CANCELLED, (run_id, NOW))


def read_history(identity: ChatTurnIdentity, run_id: str, turns: int, characters: int) -> Statement:
    """
    Read the session's latest finished *turns* before this one, newest message first; nothing for a replay.

    Parts of more than *characters* characters of JSON are left out.
    """
    place = (identity.tenant_id, identity.session_id, identity.turn_index)
    return Statement(_HISTORY, (*place, run_id, 2 * turns, characters))


def record_messages(final_text: str) -> Statement:
    """Record the user's message and the answer, with the finish."""
    return Statement(_MESSAGES, (final_text, NOW))


def forget_messages() -> Statement:
    """Forget the messages of an answer that is superseded, with the claim."""
    return Statement(_FORGET_MESSAGES)


def forget_checkpoints() -> Statement:
    """Forget a turn's steps on the way to its answer, with the finish."""
    return Statement(_FORGET_CHECKPOINTS)


def approve(run_id: str, key: str, payload_json: str) -> list[Statement]:
    """
    Record somebody's answer to a tool call that needs approval, if it is asked for; the first counts.

    Returns:
        Three statements: the write, a read of the event, and of whether anybody has ever asked for it.
    """
    return [
        give(run_id, key, payload_json),
        Statement(LOAD_EVENT, (run_id, key)),
        Statement(_WAS_ASKED, (run_id, key, json.dumps(key, ensure_ascii=False))),
    ]


def give(run_id: str, key: str, payload_json: str) -> Statement:
    """Record the result that a run has asked somebody for, while the run still waits for it; the first counts."""
    return Statement(_GIVE, (run_id, key, payload_json, NOW))


def read_asked_runs(keys: Sequence[str], tenant_id: str) -> Statement:
    """Find the runs of a tenant that wait, or have waited, for *keys*, results of a client's tools: a row for each."""
    return Statement(_READ_ASKED_RUNS, (json.dumps(list(keys)), tenant_id))


def read_turn_input(run_id: str) -> Statement:
    """Read what a turn was asked, and its run's status."""
    return Statement(_READ_TURN_INPUT, (run_id,))


def read_turn(run_id: str, theirs: Theirs | None = None) -> Statement:
    """Read a run with what its chat turn adds; where there is none, the one that agent-runtime has."""
    place = (None, None) if theirs is None else (theirs.run_id, theirs.project_id)
    return Statement(_READ_TURN, (run_id, *place))
