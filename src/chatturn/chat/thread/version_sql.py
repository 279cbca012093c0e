"""
The SQL of a turn's versions: which one counts, which one a request is about, and what makes another one count.

The messages of a turn are those of its version that counts; they name that version's run.  A version has a parent: the
version of the turn before that counted when this version began.  Where the turn before now counts another version, or
another answer stands in between, the messages are marked as broken off.  All messages from the first mark on are
detached; they come back when the mark goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from chatturn.chat.thread.identity import ChatTurnIdentity, session_run_ids, turn_run_id, version_run_ids
from chatturn.chat.thread.their_sql import FINISHED_THERE, Theirs
from chatturn.database.api import Row, Statement, Value
from chatturn.durable.sql.runs import HELD, IS_LATER_VERSION
from chatturn.durable.store import Guard

__all__ = [
    "ACTIVATES",
    "ATTACHED",
    "OtherVersion",
    "activate",
    "activation",
    "mark_breaks",
    "only_one_version",
    "order_parallel",
    "read_lines",
    "read_same_turn",
    "read_shown_version",
    "read_version_state",
    "read_versions",
    "record_version",
    "still_counts",
]

ATTACHED: Final = """
turn_index < min(?3, coalesce((SELECT min(b.turn_index) FROM chat_messages AS b INDEXED BY idx_chat_messages_breaks
  WHERE b.tenant_id = ?1 AND b.session_id = ?2 AND b.breaks = 1), 9223372036854775807))
"""
"""The SQL of what is in the thread before the turn ``?3``, of the messages of session ``?2`` of tenant ``?1``.

One bound, which SQLite finds by the index: with two bounds SQLite would use one, and read all detached messages."""

# ?1 the first version's run, ?2 and ?3 around the others, ?4 the tenant, ?5 the session, ?6 the index, ?7 the manifest,
# ?8 the version that the request replaces or null, ?9 how; where it does and does not say which, the one that counts.
# ?10 and ?11 are agent-runtime's run and the project, or null; ?12 and ?13 are around the session's runs.
_STATE: Final = f"""
WITH versions AS (
  SELECT t.run_id, t.version, t.replaces, t.replace_kind, t.manifest_hash, t.parent_index, t.parent_version,
    t.cancelled_at
  FROM chat_turns AS t WHERE t.run_id = ?1 OR (t.run_id > ?2 AND t.run_id < ?3)),
before AS (
  SELECT turn_index, version FROM chat_messages
  WHERE tenant_id = ?4 AND session_id = ?5 AND turn_index < ?6 AND role = 'assistant'
  ORDER BY turn_index DESC LIMIT 1),
theirs AS (
  SELECT r.manifest_hash = ?7 AS same FROM durable_runs AS r
  WHERE {FINISHED_THERE.format(theirs="?10", project="?11")}),
replaced AS (
  SELECT coalesce(?8, (
    SELECT version FROM chat_messages WHERE ?9 IS NOT NULL
      AND tenant_id = ?4 AND session_id = ?5 AND turn_index = ?6 AND role = 'assistant'),
    (SELECT 1 FROM theirs WHERE ?9 IS NOT NULL)) AS version),
made AS (
  SELECT max(version) AS version FROM versions
  WHERE replaces = (SELECT version FROM replaced) AND replace_kind = ?9 AND manifest_hash = ?7)
SELECT
  (SELECT version FROM chat_messages
   WHERE tenant_id = ?4 AND session_id = ?5 AND turn_index = ?6 AND role = 'assistant') AS counts,
  (SELECT min(turn_index) FROM chat_messages INDEXED BY idx_chat_messages_breaks
   WHERE tenant_id = ?4 AND session_id = ?5 AND turn_index <= ?6 AND breaks = 1) AS detached_from,
  (SELECT max(version) FROM versions) AS latest,
  (SELECT cancelled_at IS NOT NULL FROM versions ORDER BY version DESC LIMIT 1) AS stopped,
  (SELECT max(v.version) FROM versions AS v JOIN durable_runs AS r ON r.run_id = v.run_id
   WHERE r.status IN ('pending', 'running', 'suspended')) AS busy,
  (SELECT version FROM made) AS made,
  (SELECT r.status = 'completed' FROM versions AS v JOIN durable_runs AS r ON r.run_id = v.run_id
   WHERE v.version = (SELECT version FROM made)) AS made_is_over,
  (SELECT r.status = 'failed' FROM versions AS v JOIN durable_runs AS r ON r.run_id = v.run_id
   WHERE v.version = (SELECT version FROM replaced)) AS replaced_failed,
  (SELECT max(version) FROM versions AS v
   WHERE manifest_hash = ?7 AND parent_index IS (SELECT turn_index FROM before)
     AND parent_version IS (SELECT version FROM before) AND NOT EXISTS (
       SELECT 1 FROM durable_steps AS s WHERE s.run_id = v.run_id AND s.step_index = 0 AND s.status = 'completed'
         AND s.result_json ->> '$.finalText' <> '')) AS again,
  EXISTS (
    SELECT 1 FROM durable_runs AS r INDEXED BY idx_durable_runs_open CROSS JOIN chat_turns AS t ON t.run_id = r.run_id
    WHERE r.run_id > ?12 AND r.run_id < ?13 AND r.status IN ('pending', 'running') AND t.turn_index = ?6 - 1
    UNION ALL
    SELECT 1 FROM durable_runs AS r INDEXED BY idx_durable_runs_suspended
    CROSS JOIN chat_turns AS t ON t.run_id = r.run_id
    WHERE r.run_id > ?12 AND r.run_id < ?13 AND r.status = 'suspended' AND t.turn_index = ?6 - 1) AS behind_open,
  (SELECT manifest_hash = ?7 FROM versions WHERE version = (SELECT version FROM replaced)) AS same,
  (SELECT max(version) FROM versions WHERE manifest_hash = ?7) AS asked,
  (SELECT max(v.version) FROM versions AS v JOIN durable_runs AS r ON r.run_id = v.run_id
   WHERE v.manifest_hash = ?7 AND r.status IN ('pending', 'running', 'suspended')) AS open,
  (SELECT v.manifest_hash = ?7 FROM versions AS v JOIN chat_messages AS m ON m.version = v.version
   WHERE m.tenant_id = ?4 AND m.session_id = ?5 AND m.turn_index = ?6 AND m.role = 'assistant') AS counts_same,
  EXISTS (
    SELECT 1 FROM chat_messages AS m WHERE m.tenant_id = ?4 AND m.session_id = ?5 AND m.turn_index > ?6
      AND m.role = 'assistant' AND m.turn_index < coalesce((
        SELECT min(turn_index) FROM chat_messages INDEXED BY idx_chat_messages_breaks
        WHERE tenant_id = ?4 AND session_id = ?5 AND breaks = 1), 9223372036854775807)) AS passed,
  (SELECT same FROM theirs) AS theirs
"""

# Behind the claim and the turn's row: what the version replaces, and its parent once it runs.  The parent is the end of
# the history that the same claim reads, so each attempt sets it anew.  Seqs go on behind those of all other versions.
_RECORD: Final = f"""
UPDATE chat_turns SET version = ?4, replaces = coalesce(replaces, ?5), replace_kind = coalesce(replace_kind, ?6),
  asked_at_index = coalesce(asked_at_index, ?10),
  (parent_index, parent_version) = (
    SELECT m.turn_index, m.version FROM chat_messages AS m
    WHERE m.tenant_id = chat_turns.tenant_id AND m.session_id = chat_turns.session_id
      AND m.role = 'assistant' AND m.turn_index < CASE
        WHEN EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1 AND status = 'pending') THEN -1
        ELSE chat_turns.turn_index END
    ORDER BY m.turn_index DESC LIMIT 1),
  log_from = max(log_from, coalesce((
    SELECT max(s.last_seq) + 1 FROM chat_segments AS s
    WHERE (s.run_id = ?7 OR (s.run_id > ?8 AND s.run_id < ?9)) AND s.run_id <> ?1), 0))
WHERE run_id = ?1 AND {HELD}
"""

# A turn whose parent's answer retention has deleted is not broken off.  A turn without a parent on record, from a
# schema without versions, follows the first version of the turn before it.
_BREAKS: Final = """
UPDATE chat_messages SET breaks = EXISTS (
  SELECT 1 FROM chat_turns AS t
  JOIN chat_messages AS p ON p.tenant_id = chat_messages.tenant_id AND p.session_id = chat_messages.session_id
    AND p.role = 'assistant' AND p.turn_index = (
      SELECT max(q.turn_index) FROM chat_messages AS q WHERE q.tenant_id = chat_messages.tenant_id
        AND q.session_id = chat_messages.session_id AND q.turn_index < chat_messages.turn_index)
  WHERE t.run_id = chat_messages.run_id AND (p.turn_index > t.parent_index
    OR (p.turn_index = coalesce(t.parent_index, p.turn_index) AND p.version <> coalesce(t.parent_version, 1))))
WHERE tenant_id = {tenant} AND session_id = {session} AND role = 'assistant' AND turn_index IN (
  {index}, (SELECT min(n.turn_index) FROM chat_messages AS n
            WHERE n.tenant_id = {tenant} AND n.session_id = {session} AND n.turn_index > {index}))
"""
_BREAKS_OF_RUN: Final = f"""
{_BREAKS.format(tenant="?4", session="?5", index="?6")} AND {HELD}
"""
_BREAKS_OF_TURN: Final = _BREAKS.format(tenant="?1", session="?2", index="?3")

# Turns that were answered beside each other stand in the order of their indexes: the answer follows what was answered
# meanwhile, and is followed by what was begun when it was.  Of others, which wait for each other, there are none.
_FOLLOWS: Final = f"""
UPDATE chat_turns SET (parent_index, parent_version) = (
  SELECT turn_index, version FROM chat_messages
  WHERE tenant_id = ?4 AND session_id = ?5 AND role = 'assistant' AND turn_index < ?6
  ORDER BY turn_index DESC LIMIT 1)
WHERE run_id = ?1 AND replaces IS NULL AND coalesce(parent_index, -1) < (
  SELECT max(turn_index) FROM chat_messages WHERE tenant_id = ?4 AND session_id = ?5 AND turn_index < ?6) AND {HELD}
"""
_FOLLOWED: Final = f"""
WITH next AS (
  SELECT iif({IS_LATER_VERSION.format("run_id")}, rtrim(rtrim(run_id, '0123456789'), '~'), run_id) AS run_id
  FROM chat_messages WHERE tenant_id = ?4 AND session_id = ?5 AND role = 'assistant' AND turn_index > ?6
  ORDER BY turn_index LIMIT 1)
UPDATE chat_turns SET (parent_index, parent_version) = (
  SELECT turn_index, version FROM chat_turns WHERE run_id = ?1)
WHERE (run_id = (SELECT run_id FROM next)
    OR (run_id > (SELECT run_id || '~' FROM next) AND run_id < (SELECT run_id || '~:' FROM next)))
  AND NOT EXISTS (
    SELECT 1 FROM chat_messages WHERE tenant_id = ?4 AND session_id = ?5 AND turn_index = ?6 AND role = 'assistant')
  AND EXISTS (SELECT 1 FROM chat_turns AS t WHERE t.run_id = ?1 AND t.replaces IS NULL
    AND t.parent_index IS chat_turns.parent_index AND t.parent_version IS chat_turns.parent_version)
  AND {HELD}
"""

# ?1 the tenant, ?2 the session, ?3 the index, ?4 the version's run, ?5 and ?6 around the session's runs.
_MAY_COUNT: Final = """
EXISTS (SELECT 1 FROM durable_steps AS s WHERE s.run_id = ?4 AND s.step_index = 0 AND s.status = 'completed'
  AND s.result_json ->> '$.finalText' <> '')
"""
_IDLE: Final = """
NOT EXISTS (SELECT 1 FROM durable_runs AS r INDEXED BY idx_durable_runs_open
  WHERE r.run_id > ?5 AND r.run_id < ?6 AND r.status IN ('pending', 'running'))
AND NOT EXISTS (SELECT 1 FROM durable_runs AS r INDEXED BY idx_durable_runs_suspended
  WHERE r.run_id > ?5 AND r.run_id < ?6 AND r.status = 'suspended')
"""
ACTIVATES: Final = f"""
{_MAY_COUNT} AND {_IDLE} AND EXISTS (
  SELECT 1 FROM chat_messages WHERE tenant_id = ?1 AND session_id = ?2 AND turn_index = ?3 AND run_id <> ?4)
"""
"""The SQL of whether a version is going to count that does not yet; with the parameters of `activation`."""

_ACTIVATE: Final = f"""
UPDATE chat_messages SET run_id = ?4, version = (SELECT t.version FROM chat_turns AS t WHERE t.run_id = ?4),
  content = CASE role
    WHEN 'user' THEN (SELECT t.user_message FROM chat_turns AS t WHERE t.run_id = ?4)
    ELSE (SELECT s.result_json ->> '$.finalText' FROM durable_steps AS s WHERE s.run_id = ?4 AND s.step_index = 0) END
WHERE tenant_id = ?1 AND session_id = ?2 AND turn_index = ?3 AND run_id <> ?4 AND {_MAY_COUNT} AND {_IDLE}
"""
# Before the activation, under the same condition: the session's revision rises.
_ACTIVATES: Final = f"""
UPDATE chat_sessions SET revision = revision + 1
WHERE tenant_id = ?1 AND session_id = ?2 AND {ACTIVATES}
"""
_ACTIVATED: Final = f"""
SELECT {_MAY_COUNT} AS may_count, {_IDLE} AS idle,
  EXISTS (SELECT 1 FROM chat_messages
    WHERE tenant_id = ?1 AND session_id = ?2 AND turn_index = ?3 AND run_id = ?4) AS counts
"""

# A version that agent-runtime has answered counts as long as no other version does; no table has its question.
_VERSIONS: Final = f"""
SELECT t.version, t.replaces, t.replace_kind, t.user_message, t.model, t.cancelled_at, t.finish_reason, r.status,
  r.created_at, r.completed_at, t.run_id, m.run_id IS NOT NULL AS counts
FROM chat_turns AS t JOIN durable_runs AS r ON r.run_id = t.run_id
LEFT JOIN chat_messages AS m ON m.tenant_id = t.tenant_id AND m.session_id = t.session_id
  AND m.turn_index = t.turn_index AND m.role = 'assistant' AND m.run_id = t.run_id
WHERE t.run_id = ?1 OR (t.run_id > ?2 AND t.run_id < ?3)
UNION ALL
SELECT 1, NULL, NULL, NULL, NULL, CASE WHEN r.outcome_json ->> '$.notes' = 'cancelled' THEN r.completed_at END, NULL,
  r.status, r.created_at, r.completed_at, r.run_id, NOT EXISTS (SELECT 1 FROM chat_messages AS m
    WHERE m.tenant_id = ?4 AND m.session_id = ?5 AND m.turn_index = ?6 AND m.role = 'assistant')
FROM durable_runs AS r WHERE {FINISHED_THERE.format(theirs="?7", project="?8")}
ORDER BY 1
"""

# The version that runs, else the version that counts, else agent-runtime's, else the latest.
_SHOWN: Final = f"""
SELECT coalesce(
  (SELECT max(t.version) FROM chat_turns AS t JOIN durable_runs AS r ON r.run_id = t.run_id
   WHERE (t.run_id = ?1 OR (t.run_id > ?2 AND t.run_id < ?3)) AND r.status IN ('pending', 'running', 'suspended')),
  (SELECT version FROM chat_messages
   WHERE tenant_id = ?4 AND session_id = ?5 AND turn_index = ?6 AND role = 'assistant'),
  (SELECT 1 FROM durable_runs AS r WHERE {FINISHED_THERE.format(theirs="?7", project="?8")}),
  (SELECT max(t.version) FROM chat_turns AS t WHERE t.run_id = ?1 OR (t.run_id > ?2 AND t.run_id < ?3)), 1) AS version
"""


_LAST_LINE: Final = 2**53 - 2
"""2**53 - 1 is the last integer that JavaScript, and so D1, carries exactly; no log has that many lines."""

# For each version: where its log ends, and its highest segment that begins at or below the seq ?4.
_LINES: Final = """
SELECT t.version, (SELECT max(last_seq) FROM chat_segments WHERE run_id = t.run_id) AS ends,
  (SELECT max(first_seq) FROM chat_segments WHERE run_id = t.run_id AND first_seq <= ?4) AS begins
FROM chat_turns AS t WHERE t.run_id = ?1 OR (t.run_id > ?2 AND t.run_id < ?3)
"""

_SAME_TURN: Final = """
SELECT 1 AS same FROM chat_turns WHERE (run_id = ?1 OR (run_id > ?2 AND run_id < ?3)) AND manifest_hash = ?4 LIMIT 1
"""

_BROKEN: Final = "tenant_id = {} AND session_id = {} AND turn_index <= {} AND breaks = 1"
_ONLY_ONE: Final = f"""
NOT EXISTS (SELECT 1 FROM chat_turns WHERE run_id > {{0}} AND run_id < {{1}})
AND NOT EXISTS (SELECT 1 FROM chat_messages INDEXED BY idx_chat_messages_breaks
  WHERE {_BROKEN.format("{2}", "{3}", "{4}")})
"""
_STILL_COUNTS: Final = """
EXISTS (SELECT 1 FROM durable_runs WHERE run_id = {0}) OR {4} IS (
  SELECT version FROM chat_messages
  WHERE tenant_id = {1} AND session_id = {2} AND turn_index = {3} AND role = 'assistant')
"""


# With the refusal, the version from the second on that counts: most of who asks wants it said again.
_COUNTING: Final = f"""
m.version, t.finish_reason, t.first_attempt, t.traceparent, t.caller_span_id, t.traced_by, NULL AS last_ended, r.*,
s.result_json, EXISTS (SELECT 1 FROM chat_messages INDEXED BY idx_chat_messages_breaks
  WHERE {_BROKEN.format("{2}", "{3}", "{4}")}) AS detached
"""
_FROM_COUNTING: Final = """
FROM (SELECT 1) LEFT JOIN chat_messages AS m ON m.tenant_id = {2} AND m.session_id = {3} AND m.turn_index = {4}
  AND m.role = 'assistant' AND m.version > 1
LEFT JOIN durable_runs AS r ON r.run_id = m.run_id
LEFT JOIN chat_turns AS t ON t.run_id = m.run_id
LEFT JOIN durable_steps AS s ON s.run_id = m.run_id AND s.step_index = 0 AND s.status = 'completed'
"""


@dataclass
class OtherVersion(Exception):
    """
    The version that the request is about has to be looked up.

    Attributes:
        counting: The run of the version that counts, with its answer and the columns that a replay needs; None where
            they are not known.  See `chatturn.chat.turn.replay.replay_of_version`.
    """

    counting: Row | None = None


def only_one_version(identity: ChatTurnIdentity) -> Guard:
    """Claim the first version only where there is no other, and the turn is not detached."""
    _, first, last = version_run_ids(identity)
    params = (first, last, identity.tenant_id, identity.session_id, identity.turn_index)
    return Guard(sql=_ONLY_ONE, params=params, refusal=_other_version, told=_COUNTING, told_from=_FROM_COUNTING)


def _other_version(row: Row) -> Exception:
    return OtherVersion(None if row["run_id"] is None or row["detached"] else row)


def still_counts(identity: ChatTurnIdentity, counts: int | None) -> Guard:
    """Begin a version only while the version that it replaces counts."""
    place = (identity.tenant_id, identity.session_id, identity.turn_index)
    params = (turn_run_id(identity), *place, counts)
    return Guard(sql=_STILL_COUNTS, params=params, refusal=lambda _row: OtherVersion())


def read_version_state(
    identity: ChatTurnIdentity, manifest_hash: str, replaces: int | None, kind: str | None, theirs: Theirs | None
) -> Statement:
    """Read what decides which version of a turn a request is about; see `chatturn.chat.thread.versions.version_for`."""
    place = (identity.tenant_id, identity.session_id, identity.turn_index)
    asked = (manifest_hash, replaces, kind, *_names(theirs))
    session = session_run_ids(identity.tenant_id, identity.session_id)
    return Statement(_STATE, (*version_run_ids(identity), *place, *asked, *session))


def record_version(
    identity: ChatTurnIdentity, replaces: int | None, kind: str | None, asked_at_index: int | None
) -> Statement:
    """Record which version it is, and where it was asked if not at its own index, with the claim, behind its turn."""
    return Statement(_RECORD, (identity.version, replaces, kind, *version_run_ids(identity), asked_at_index))


def order_parallel(identity: ChatTurnIdentity) -> list[Statement]:
    """Order an answer among the answers that were given in parallel, with the finish and before its messages."""
    place = (identity.tenant_id, identity.session_id, identity.turn_index)
    return [Statement(_FOLLOWS, place), Statement(_FOLLOWED, place)]


def mark_breaks(identity: ChatTurnIdentity) -> Statement:
    """Mark the turns that are detached by a new answer, with the finish and behind its messages."""
    return Statement(_BREAKS_OF_RUN, (identity.tenant_id, identity.session_id, identity.turn_index))


def activation(identity: ChatTurnIdentity) -> tuple[Value, ...]:
    """Return the parameters of the statements that let a version count."""
    runs = session_run_ids(identity.tenant_id, identity.session_id)
    return (identity.tenant_id, identity.session_id, identity.turn_index, turn_run_id(identity), *runs)


def activate(
    identity: ChatTurnIdentity, before: Sequence[Statement] = (), behind: Sequence[Statement] = ()
) -> list[Statement]:
    """
    Let a version count, unless the session is busy, and read what came of it.

    Args:
        identity: The version.
        before: What is written before it counts, once the session's revision has risen.
        behind: What is written when it counts.
    """
    params = activation(identity)
    return [
        Statement(_ACTIVATES, params),
        *before,
        Statement(_ACTIVATE, params),
        Statement(_BREAKS_OF_TURN, params[:3]),
        *behind,
        Statement(_ACTIVATED, params),
    ]


def read_versions(identity: ChatTurnIdentity, theirs: Theirs | None) -> Statement:
    """Read all versions of a turn."""
    place = (identity.tenant_id, identity.session_id, identity.turn_index)
    return Statement(_VERSIONS, (*version_run_ids(identity), *place, *_names(theirs)))


def read_same_turn(identity: ChatTurnIdentity, manifest_hash: str) -> Statement:
    """Read whether a version of a turn was asked with this manifest."""
    return Statement(_SAME_TURN, (*version_run_ids(identity), manifest_hash))


def read_lines(identity: ChatTurnIdentity, seq: int) -> Statement:
    """Read where the logs of a turn's versions are, seen from a line; see `chatturn.chat.thread.versions.at_line`."""
    return Statement(_LINES, (*version_run_ids(identity), min(seq, _LAST_LINE)))


def read_shown_version(identity: ChatTurnIdentity, theirs: Theirs | None) -> Statement:
    """Read which version of a turn is shown to who names none."""
    place = (identity.tenant_id, identity.session_id, identity.turn_index)
    return Statement(_SHOWN, (*version_run_ids(identity), *place, *_names(theirs)))


def _names(theirs: Theirs | None) -> tuple[str | None, str | None]:
    return (None, None) if theirs is None else (theirs.run_id, theirs.project_id)
