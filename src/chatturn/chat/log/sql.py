"""
The SQL of the log: segments written under the lease of their turn, and read back a page at a time.

In fenced ones ``?1`` to ``?3`` are the lease (see `chatturn.durable.sql.runs`); their own parameters start
at ``?4``.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from chatturn.chat.log.room import PAGE_CHARACTERS
from chatturn.database.api import NOW, Statement
from chatturn.durable.sql.runs import HELD, MOMENT

__all__ = [
    "NEWS",
    "Segment",
    "append_segment",
    "give_log_up",
    "keep_log",
    "loose_logs",
    "mark_compact",
    "note_follower",
    "old_logs",
    "read_attempt",
    "read_page",
    "read_segments",
    "request_cancel",
    "rewrite_segments",
    "watch",
]

# Every write tells the turn's worker whether somebody wants the turn stopped, and whether it is read elsewhere.
NEWS: Final = f"""
(SELECT cancel_requested_at FROM chat_turns WHERE run_id = ?1) AS cancel_requested_at,
coalesce((SELECT followed_until FROM chat_turns WHERE run_id = ?1) > {MOMENT.format("?4")}, 0) AS followed
"""
"""Columns for `chatturn.durable.store.News`."""

# A segment that is written again, with more lines, is replaced: the reply to the earlier write was lost or is late.
_APPEND: Final = f"""
INSERT INTO chat_segments (run_id, first_seq, last_seq, attempt, lines, ended)
SELECT ?1, ?5, ?6, ?7, ?8, ?9 WHERE {HELD}
ON CONFLICT (run_id, first_seq) DO UPDATE SET
  last_seq = excluded.last_seq, lines = excluded.lines, ended = excluded.ended
RETURNING {NEWS}
"""

_WATCH: Final = f"SELECT {NEWS} WHERE {HELD}"

_LAST_CURSOR: Final = 2**53 - 2
"""2**53 - 1 is the last integer that JavaScript, and so D1, carries exactly."""

_PAGE_SEGMENTS: Final = 1_000
_RECALLED_SEGMENTS: Final = 16

_LINE_CHARACTERS: Final = 120
"""About the length of a whole line, for short forms of an earlier version, which do not say how long they are."""

# How many characters a row's lines have, whose short form begins with ``~`` and their number.
_SIZE: Final = f"""max(length({{0}}lines), iif(unicode({{0}}lines) = unicode('~'),
  coalesce(nullif(CAST(substr({{0}}lines, 2, 8) AS INTEGER), 0),
           {_LINE_CHARACTERS} * ({{0}}last_seq - {{0}}first_seq + 1)), 0))"""

# One row per segment, each with the run's state beside it; one row without a segment if there is none.  One statement,
# so that the state and the lines are of one moment; segment by segment, so that only segments that are shown are read.
# ?1 the run, ?2 the seq after which to read, ?3 now.
_READ_PAGE: Final = f"""
WITH RECURSIVE turn AS (
  SELECT r.run_id, r.status, r.epoch, r.created_at, r.outcome_json ->> '$.notes' AS outcome, t.log_from, t.cancelled_at,
         max(?2 + 1, t.log_from) AS start, e.last_seq AS log_end, e.attempt, e.ended,
         CAST((julianday(r.lease_expires_at) - julianday({MOMENT.format("?3")})) * 86400000 AS INTEGER)
           AS lease_left_ms
  FROM durable_runs AS r JOIN chat_turns AS t ON t.run_id = r.run_id LEFT JOIN (
    SELECT last_seq, attempt, ended FROM chat_segments WHERE run_id = ?1 ORDER BY first_seq DESC LIMIT 1) AS e
  WHERE r.run_id = ?1
), page (first_seq, before) AS (
  SELECT min(first_seq), 0 FROM chat_segments
  WHERE run_id = ?1 AND last_seq >= (SELECT start FROM turn) AND first_seq >= coalesce(
    (SELECT max(first_seq) FROM chat_segments WHERE run_id = ?1 AND first_seq <= (SELECT start FROM turn)), 0)
  UNION ALL
  SELECT (SELECT min(n.first_seq) FROM chat_segments AS n WHERE n.run_id = ?1 AND n.first_seq > page.first_seq),
         page.before + {_SIZE.format("s.")}
  FROM page JOIN chat_segments AS s ON s.run_id = ?1 AND s.first_seq = page.first_seq
  WHERE page.before < {PAGE_CHARACTERS} LIMIT {_PAGE_SEGMENTS}
)
SELECT turn.*, s.first_seq AS first_seq, s.last_seq AS last_seq, s.lines AS lines
FROM turn LEFT JOIN (page JOIN chat_segments AS s ON s.run_id = ?1 AND s.first_seq = page.first_seq)
  ON page.before < {PAGE_CHARACTERS} ORDER BY s.first_seq
"""

# Only the log of this answer: an attempt that has ended is history.  ?1 the run, ?2 the attempt whose predecessor is
# read, ?3 the first seq.
_READ_ATTEMPT: Final = f"""
SELECT last_seq, lines FROM chat_segments
WHERE run_id = ?1 AND first_seq >= max(?3, (SELECT log_from FROM chat_turns WHERE run_id = ?1))
  AND attempt = (SELECT max(attempt) FROM chat_segments WHERE run_id = ?1 AND attempt < ?2)
ORDER BY first_seq LIMIT {_RECALLED_SEGMENTS}
"""

_READ_ENDED_ATTEMPT: Final = _READ_ATTEMPT.replace("max(?3, (SELECT log_from FROM chat_turns WHERE run_id = ?1))", "?3")

# Only for a turn that is not over.  The first request counts: its moment stays.
_REQUEST_CANCEL: Final = f"""
UPDATE chat_turns SET cancel_requested_at = coalesce(cancel_requested_at, {MOMENT.format("?2")})
WHERE run_id = ?1 AND EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1 AND status IN ('running', 'suspended'))
RETURNING cancel_requested_at
"""

_NOTE_FOLLOWER: Final = f"""
UPDATE chat_turns SET followed_until = max(coalesce(followed_until, ''), {MOMENT.format("?2, ?3")}) WHERE run_id = ?1
"""


_LOOSE_AFTER: Final = "-10 minutes"
"""Time since the turn's last claim: by now nobody reads the log live, nor with older code that reads no short logs."""

# What a turn was when it was read: no claim since, and no run of the same id that was begun after it was deleted.
_STATE: Final = "{}epoch || ' ' || {}created_at"

# Only for a turn that is over and is as it was when it was read.  ?1 the run, ?2 its state.
_OVER: Final = f"""EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1 AND {_STATE.format("", "")} = ?2
  AND lease_holder_id IS NULL AND status IN ('completed', 'failed'))"""

_LOOSE_LOGS: Final = f"""
SELECT t.run_id, {_STATE.format("r.", "r.")} AS state
FROM chat_turns AS t CROSS JOIN durable_runs AS r ON r.run_id = t.run_id
WHERE t.log_compact = 0 AND t.updated_at < {MOMENT.format(f"?1, '{_LOOSE_AFTER}'")}
  AND r.lease_holder_id IS NULL AND r.status IN ('completed', 'failed')
ORDER BY t.updated_at LIMIT ?2
"""

_MARK_COMPACT: Final = f"UPDATE chat_turns SET log_compact = 1 WHERE run_id = ?1 AND {_OVER}"

_REWRITTEN_SEGMENTS: Final = 200
_REWRITTEN_CHARACTERS: Final = 400_000

_READ_SEGMENTS: Final = f"""
SELECT first_seq, last_seq, attempt, ended, lines FROM (
  SELECT *, sum({_SIZE.format("")}) OVER (ORDER BY first_seq) - {_SIZE.format("")} AS before FROM (
    SELECT * FROM chat_segments WHERE run_id = ?1 AND first_seq > ?2 ORDER BY first_seq LIMIT {_REWRITTEN_SEGMENTS}))
WHERE before < {_REWRITTEN_CHARACTERS} ORDER BY first_seq
"""

_DELETE_SEGMENTS: Final = f"DELETE FROM chat_segments WHERE run_id = ?1 AND first_seq BETWEEN ?3 AND ?4 AND {_OVER}"
_INSERT_SEGMENT: Final = f"""
INSERT INTO chat_segments (run_id, first_seq, last_seq, attempt, ended, lines)
SELECT ?1, ?3, ?4, ?5, ?6, ?7 WHERE {_OVER}
"""


_OLD_LOGS: Final = f"""
SELECT t.run_id, {_STATE.format("r.", "r.")} AS state,
  t.tenant_id, t.session_id, t.user_id, t.turn_index, t.version, t.log_from,
  (SELECT result_json FROM durable_steps AS s
   WHERE s.run_id = t.run_id AND s.step_index = 0 AND s.status = 'completed') AS result_json,
  g.last_seq, g.attempt, g.ended, g.lines
FROM chat_turns AS t CROSS JOIN durable_runs AS r ON r.run_id = t.run_id
LEFT JOIN chat_segments AS g ON g.run_id = t.run_id
  AND g.first_seq = (SELECT max(first_seq) FROM chat_segments WHERE run_id = t.run_id)
WHERE t.log_kept = 1 AND t.updated_at < {MOMENT.format("?1, ?2")}
  AND r.lease_holder_id IS NULL AND r.status IN ('completed', 'failed')
ORDER BY t.updated_at LIMIT ?3
"""

_DELETE_LOG: Final = f"DELETE FROM chat_segments WHERE run_id = ?1 AND {_OVER}"
_GIVEN_UP: Final = f"UPDATE chat_turns SET log_kept = 0, log_compact = 1, log_from = ?3 WHERE run_id = ?1 AND {_OVER}"
_SEEN: Final = f"UPDATE chat_turns SET log_kept = 0 WHERE run_id = ?1 AND {_OVER}"


class Segment(NamedTuple):
    """
    Consecutive lines of one attempt, as one row.

    Attributes:
        first_seq: The seq of the first line.
        last_seq: The seq of the last line.
        attempt: The attempt that said the lines.
        ended: 1 if the last line is the attempt's terminal line, else 0.
        lines: Whole lines as NDJSON, or their short form.
    """

    first_seq: int
    last_seq: int
    attempt: int
    ended: int
    lines: str


def loose_logs(limit: int) -> Statement:
    """Read which turns that are over have logs that were not made short, the oldest first."""
    return Statement(_LOOSE_LOGS, (NOW, limit))


def mark_compact(run_id: str, state: str) -> Statement:
    """Note that a log is as short as it gets, unless the turn was claimed or deleted since."""
    return Statement(_MARK_COMPACT, (run_id, state))


def read_segments(run_id: str, after: int) -> Statement:
    """Read the next rows of a log whose lines come after a seq, a bounded part."""
    return Statement(_READ_SEGMENTS, (run_id, after))


def rewrite_segments(run_id: str, state: str, segments: Sequence[Segment]) -> list[Statement]:
    """Put *segments* in the place of the rows with the same lines, unless the turn was claimed or deleted since."""
    first, last = segments[0].first_seq, segments[-1].last_seq
    return [
        Statement(_DELETE_SEGMENTS, (run_id, state, first, last)),
        *(Statement(_INSERT_SEGMENT, (run_id, state, *segment)) for segment in segments),
    ]


def old_logs(older_than_days: int, limit: int) -> Statement:
    """Read turns that are over and were asked longer ago, whose logs are kept, with the last row of each."""
    return Statement(_OLD_LOGS, (NOW, f"-{older_than_days} days", limit))


def give_log_up(run_id: str, state: str, left: Segment) -> list[Statement]:
    """Put *left* in the place of the whole log, unless the turn was claimed or deleted since."""
    return [
        Statement(_DELETE_LOG, (run_id, state)),
        Statement(_INSERT_SEGMENT, (run_id, state, *left)),
        Statement(_GIVEN_UP, (run_id, state, left.first_seq)),
    ]


def keep_log(run_id: str, state: str) -> Statement:
    """Note that a log stays as it is."""
    return Statement(_SEEN, (run_id, state))


def append_segment(first_seq: int, attempt: int, lines: Sequence[str], *, ended: bool = False) -> Statement:
    """Store consecutive lines, under the lease; returns the news for the turn's worker."""
    return Statement(_APPEND, (NOW, first_seq, first_seq + len(lines) - 1, attempt, "".join(lines), int(ended)))


def watch() -> Statement:
    """Store nothing, and return the same news."""
    return Statement(_WATCH, (NOW,))


def read_page(run_id: str, after: int) -> Statement:
    """Read the state of a turn and the next page of its log."""
    return Statement(_READ_PAGE, (run_id, min(after, _LAST_CURSOR), NOW))


def read_attempt(run_id: str, before_attempt: int, first_seq: int, *, ended: bool = False) -> Statement:
    """Read the next page of what the latest attempt before another said, if it broke off; or if it has *ended*."""
    return Statement(_READ_ENDED_ATTEMPT if ended else _READ_ATTEMPT, (run_id, before_attempt, first_seq))


def request_cancel(run_id: str) -> Statement:
    """Ask whoever runs the turn to stop it; returns a row unless it is over."""
    return Statement(_REQUEST_CANCEL, (run_id, NOW))


def note_follower(run_id: str, for_ms: int) -> Statement:
    """Note that somebody reads the turn from elsewhere, and will say so again within so long if that is still so."""
    return Statement(_NOTE_FOLLOWER, (run_id, NOW, f"+{for_ms / 1000:.3f} seconds"))
