"""
The SQL of the chat tables, as statements that join the claim's and the finish's transactions.

In fenced ones ``?1`` to ``?3`` are the lease (see `chatturn.durable.statements`); their own parameters start
at ``?4``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from chatturn.chat.identity import ChatTurnIdentity
from chatturn.databases import Statement
from chatturn.durable.legacy_statements import either
from chatturn.durable.settling import TurnEnd
from chatturn.durable.statements import HELD, MOMENT

__all__ = [
    "begin_turn",
    "end_turn",
    "forget_checkpoints",
    "forget_messages",
    "read_history",
    "read_place",
    "read_turn",
    "read_turn_input",
    "record_messages",
    "record_usage",
]

# A log begins anew behind an attempt that has ended, and with another message: what was said before is history.
_BEGIN_TURN: Final = f"""
INSERT INTO chat_turns (run_id, tenant_id, session_id, user_id, turn_index, user_message, model, metadata_json,
                        trace_id, attempt, created_at, updated_at)
SELECT ?1, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, epoch, updated_at, updated_at
FROM durable_runs WHERE run_id = ?1 AND {HELD}
ON CONFLICT (run_id) DO UPDATE SET
  user_id = excluded.user_id, user_message = excluded.user_message, model = excluded.model,
  metadata_json = excluded.metadata_json, trace_id = excluded.trace_id, attempt = excluded.attempt,
  updated_at = excluded.updated_at, cancelled_at = NULL,
  cancel_requested_at = CASE WHEN ?12 THEN NULL ELSE cancel_requested_at END,
  log_from = coalesce((
    SELECT CASE WHEN ended OR ?12 THEN last_seq + 1 END FROM chat_segments
    WHERE run_id = ?1 ORDER BY first_seq DESC LIMIT 1), log_from)
"""

# Where the log ends, and what is known of the attempts before.
_READ_PLACE: Final = """
SELECT t.cancel_requested_at, t.suspensions, t.log_from, s.last_seq, s.attempt, s.ended
FROM chat_turns AS t LEFT JOIN (
  SELECT last_seq, attempt, ended FROM chat_segments WHERE run_id = ?1 ORDER BY first_seq DESC LIMIT 1) AS s
WHERE t.run_id = ?1
"""

# With the attempt's last write: what it leaves for the next one, or for good.
_END_CANCELLED: Final = f"UPDATE chat_turns SET cancelled_at = {MOMENT.format('?4')} WHERE run_id = ?1 AND {HELD}"
_END_FAILED: Final = f"UPDATE chat_turns SET cancel_requested_at = NULL WHERE run_id = ?1 AND {HELD}"
_END_SUSPENDED: Final = f"UPDATE chat_turns SET suspensions = suspensions + 1 WHERE run_id = ?1 AND {HELD}"

# Newest first, so that the limit keeps the latest; within a turn the assistant's row sorts before the user's.
_HISTORY: Final = """
SELECT role, content FROM chat_messages
WHERE tenant_id = ?1 AND session_id = ?2 AND turn_index < ?3
  AND NOT EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?4 AND status = 'completed')
ORDER BY turn_index DESC, role ASC LIMIT ?5
"""

_MESSAGES: Final = f"""
INSERT INTO chat_messages (tenant_id, session_id, turn_index, role, content, run_id, created_at)
SELECT t.tenant_id, t.session_id, t.turn_index, m.role, m.content, t.run_id, {MOMENT.format("?5")}
FROM chat_turns AS t
JOIN (SELECT 'user' AS role, user_message AS content FROM chat_turns WHERE run_id = ?1
      UNION ALL SELECT 'assistant', ?4) AS m
WHERE t.run_id = ?1 AND {HELD}
ON CONFLICT (tenant_id, session_id, turn_index, role) DO UPDATE SET
  content = excluded.content, created_at = excluded.created_at
"""

_USAGE: Final = f"""
INSERT INTO chat_usage (run_id, attempt, call_index, model, tokens_in, tokens_out, tokens_cached,
                        tokens_reasoning, finish_reason, recorded_at)
SELECT ?1, json_extract(value, '$[0]'), json_extract(value, '$[1]'),
       json_extract(value, '$[2]'), json_extract(value, '$[3]'), json_extract(value, '$[4]'),
       json_extract(value, '$[5]'), json_extract(value, '$[6]'), json_extract(value, '$[7]'), {MOMENT.format("?5")}
FROM json_each(?4) WHERE {HELD}
ON CONFLICT (run_id, attempt, call_index) DO NOTHING
"""

_FORGET_MESSAGES: Final = f"""
DELETE FROM chat_messages WHERE (tenant_id, session_id, turn_index) IN (
  SELECT tenant_id, session_id, turn_index FROM chat_turns WHERE run_id = ?1) AND {HELD}
"""

# The checkpoints on the way to an answer; step 0 is the turn itself, and holds the answer.
_FORGET_CHECKPOINTS: Final = f"DELETE FROM durable_steps WHERE run_id = ?1 AND step_index > 0 AND {HELD}"

_READ_TURN_INPUT: Final = """
SELECT t.tenant_id, t.session_id, t.user_id, t.turn_index, t.user_message, t.model, t.metadata_json, r.status
FROM chat_turns AS t JOIN durable_runs AS r ON r.run_id = t.run_id WHERE t.run_id = ?1
"""

_READ_TURN: Final = f"""
SELECT r.*, t.model, t.cancelled_at FROM durable_runs AS r LEFT JOIN chat_turns AS t ON t.run_id = r.run_id
WHERE r.run_id = {either("?2")}
"""


def begin_turn(
    identity: ChatTurnIdentity,
    *,
    user_message: str,
    model: str | None,
    metadata_json: str | None,
    trace_id: str | None,
    supersede: bool = False,
) -> Statement:
    """Record who asks what, with the claim."""
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
            trace_id,
            int(supersede),
        ),
    )


def read_place(run_id: str) -> Statement:
    """Read where the turn stands: where its log ends, and whether somebody asked to stop it."""
    return Statement(_READ_PLACE, (run_id,))


def end_turn(end: TurnEnd, moment: str) -> list[Statement]:
    """Note how an attempt ended, with its last write; nothing for one that answered."""
    if end.cancelled is not None:
        return [Statement(_END_CANCELLED, (moment,))]
    if end.wait is not None:
        return [Statement(_END_SUSPENDED)]
    return [Statement(_END_FAILED)] if end.text is None else []


def read_history(identity: ChatTurnIdentity, run_id: str, turns: int) -> Statement:
    """Read the session's latest finished *turns* before this one, newest message first; nothing for a replay."""
    return Statement(_HISTORY, (identity.tenant_id, identity.session_id, identity.turn_index, run_id, 2 * turns))


def record_messages(final_text: str, moment: str) -> Statement:
    """Record the user's message and the answer, with the finish."""
    return Statement(_MESSAGES, (final_text, moment))


def record_usage(attempt: int, usages: Sequence[Mapping[str, Any]], moment: str) -> list[Statement]:
    """
    Record what the attempt's model calls consumed: the data of its ``usage`` events; nothing for none.

    What is no count, or no text where text belongs, is not known, and is left out.  A call that is replayed says
    which attempt made it, and is recorded once, with that attempt.
    """
    if not usages:
        return []
    calls_of: dict[int, int] = {}
    rows = []
    for usage in usages:
        paid = _count(usage, "attempt") or attempt
        calls_of[paid] = calls_of.get(paid, -1) + 1
        counts = (_count(usage, name) for name in _COUNTS)
        rows.append([paid, calls_of[paid], _text(usage, "model"), *counts, _text(usage, "finishReason")])
    return [Statement(_USAGE, (json.dumps(rows), moment))]


def forget_messages() -> Statement:
    """Forget the messages of an answer that is superseded, with the claim."""
    return Statement(_FORGET_MESSAGES)


def forget_checkpoints() -> Statement:
    """Forget a turn's steps on the way to its answer, with the finish."""
    return Statement(_FORGET_CHECKPOINTS)


def read_turn_input(run_id: str) -> Statement:
    """Read what a turn was asked, and its run's status."""
    return Statement(_READ_TURN_INPUT, (run_id,))


def read_turn(run_id: str, legacy_run_id: str | None = None) -> Statement:
    """Read a run with what its chat turn adds; where there is none, the one that the documents' engine has."""
    return Statement(_READ_TURN, (run_id, legacy_run_id))


_COUNTS: Final = ("tokensIn", "tokensOut", "tokensCached", "tokensReasoning")
_LARGEST_COUNT: Final = 2**53 - 1


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and 0 <= value <= _LARGEST_COUNT else None


def _text(usage: Mapping[str, Any], name: str) -> str | None:
    value = usage.get(name)
    return value if isinstance(value, str) else None
