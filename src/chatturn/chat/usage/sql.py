"""
The SQL of what model calls have consumed: recorded with a turn's writes, and added up for operators and budgets.

In those that join a turn's write ``?1`` to ``?3`` are its lease (see `chatturn.durable.sql.runs`).
"""

import json
from collections.abc import Sequence
from typing import Final

from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.usage.calls import ModelCall
from chatturn.database.api import NOW, Statement
from chatturn.durable.sql.runs import HELD, MOMENT
from chatturn.errors import LeaseLost

__all__ = [
    "KEYS",
    "delete_usage",
    "deliver_checkpoints",
    "deliver_continued",
    "lose_calls",
    "read_spent",
    "read_usage",
    "read_usage_of_turn",
    "record_calls",
    "record_calls_late",
]

_COLUMNS: Final = (
    "attempt", "call_index", "wasted", "model", "request_id", "outcome", "tokens_in", "tokens_out", "tokens_cached",
    "tokens_reasoning", "estimated_tokens_out", "cost_micro_usd", "tries", "headers_ms", "first_token_ms",
    "duration_ms", "finish_reason", "error_code",
)  # fmt: skip
_VALUES: Final = ", ".join(f"json_extract(value, '$[{at}]')" for at in range(len(_COLUMNS)))
_UPDATES: Final = ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS[3:])

# A call is on record once, under the attempt that made it, and is wasted until it is delivered.  What is known of it
# only grows: its end replaces its beginning, and nothing takes a delivery back.
_RECORD: Final = f"""
INSERT INTO chat_usage ({", ".join(_COLUMNS)}, run_id, tenant_id, session_id, recorded_at)
SELECT {_VALUES}, ?1, {{identity}}, {{moment}}
FROM json_each({{calls}}) WHERE {{fence}}
ON CONFLICT (run_id, attempt, call_index) DO UPDATE SET {_UPDATES}, wasted = min(chat_usage.wasted, excluded.wasted)
WHERE chat_usage.outcome IN ('running', 'lost') OR excluded.wasted < chat_usage.wasted
"""

_RECORD_FENCED: Final = _RECORD.format(calls="?4", identity="?5, ?6", moment=MOMENT.format("?7"), fence=HELD)

# By a worker that has lost its turn: the money is spent all the same.
_RECORD_LATE: Final = _RECORD.format(
    calls="?2",
    identity="?3, ?4",
    moment=MOMENT.format("?5"),
    fence="EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1)",
)

# What the worker of attempt ?2 knows is all of its ?3 calls: none of them is lost, and it has paid for no further one.
# Those that no write of the turn delivers have that as their error, by which whoever follows knows the same.
_SETTLE_LOST: Final = """
DELETE FROM chat_usage WHERE run_id = ?1 AND attempt = ?2 AND call_index >= ?3 AND outcome = 'lost'
"""
_SETTLE_LATE: Final = f"""
UPDATE chat_usage SET error_code = coalesce(error_code, '{LeaseLost.code}')
WHERE run_id = ?1 AND attempt = ?2 AND wasted = 1
"""

# Lost calls of the attempts before ?4.  The latest attempt on record has already recorded those of the attempts before
# it, so the search begins with that attempt.
# ?5 the model, ?6 and ?7 tenant and session, ?8 now.
_LOSE_UNKNOWN: Final = f"""
INSERT INTO chat_usage (run_id, attempt, call_index, model, outcome, wasted, tenant_id, session_id, recorded_at)
WITH RECURSIVE before (attempt) AS (
  SELECT coalesce((SELECT max(attempt) FROM chat_usage WHERE run_id = ?1 AND attempt < ?4), 1)
  UNION ALL SELECT attempt + 1 FROM before WHERE attempt < ?4 - 1
)
SELECT ?1, b.attempt,
  (SELECT coalesce(max(call_index) + 1, 0) FROM chat_usage WHERE run_id = ?1 AND attempt = b.attempt),
  ?5, 'lost', 1, ?6, ?7, {MOMENT.format("?8")}
FROM before AS b WHERE {HELD}
  AND NOT EXISTS (SELECT 1 FROM chat_segments WHERE run_id = ?1 AND attempt = b.attempt AND ended)
  AND NOT EXISTS (
    SELECT 1 FROM chat_usage WHERE run_id = ?1 AND attempt = b.attempt
      AND (outcome IN ('running', 'lost') OR error_code = '{LeaseLost.code}'))
"""

# Of an attempt's only call all that the attempt said is known to be; the line that begins the attempt is none of it.
# One that has reported while it ran is lost as well: it may have used more since.
_LOSE_RUNNING: Final = f"""
UPDATE chat_usage AS u SET outcome = 'lost',
  estimated_tokens_out = CASE WHEN call_index = 0 AND tokens_out IS NULL THEN nullif((
  SELECT sum(last_seq - first_seq + 1) - 1 FROM chat_segments AS s
  WHERE s.run_id = ?1 AND s.attempt = u.attempt), 0) ELSE estimated_tokens_out END
WHERE run_id = ?1 AND attempt < ?4 AND outcome IN ('running', 'lost') AND {HELD}
"""

# An attempt that went on with what others had said delivers theirs: of those in its log that broke off.
_DELIVER_CONTINUED: Final = f"""
UPDATE chat_usage SET wasted = 0
WHERE run_id = ?1 AND attempt < ?4 AND outcome <> 'failed' AND {HELD} AND attempt IN (
  SELECT s.attempt FROM chat_segments AS s JOIN chat_turns AS t ON t.run_id = s.run_id
  WHERE s.run_id = ?1 AND s.first_seq >= t.log_from GROUP BY s.attempt HAVING max(s.ended) = 0)
"""

# A step that holds what a model said names the request.
_DELIVER_CHECKPOINTS: Final = f"""
UPDATE chat_usage SET wasted = 0
WHERE run_id = ?1 AND {HELD} AND request_id IN (
  SELECT result_json ->> '$.requestId' FROM durable_steps WHERE run_id = ?1 AND step_index > 0 AND kind = 'llm')
"""

_DELETED_AT_ONCE: Final = 500

# Tenant by tenant, off the index.
_DELETE_OLD: Final = f"""
WITH RECURSIVE tenants (tenant_id) AS (
  SELECT min(tenant_id) FROM chat_usage
  UNION ALL
  SELECT (SELECT min(tenant_id) FROM chat_usage WHERE tenant_id > tenants.tenant_id)
  FROM tenants WHERE tenants.tenant_id IS NOT NULL
)
DELETE FROM chat_usage WHERE (run_id, attempt, call_index) IN (
  SELECT u.run_id, u.attempt, u.call_index FROM tenants CROSS JOIN chat_usage AS u
    ON u.tenant_id = tenants.tenant_id AND u.recorded_at < {MOMENT.format("?1, ?2")}
  LIMIT {_DELETED_AT_ONCE})
"""

# What budgets are compared with, each asked for where it has a limit.
_SPENT: Final = {
    "turn": "(SELECT sum(cost_micro_usd) FROM chat_usage WHERE run_id = ?1)",
    "session": "(SELECT sum(cost_micro_usd) FROM chat_usage WHERE run_id > ?2 AND run_id < ?3)",
    "tenant": f"""(SELECT sum(cost_micro_usd) FROM chat_usage
                   WHERE tenant_id = ?4 AND recorded_at >= substr({MOMENT.format("?5")}, 1, 10))""",
}

KEYS: Final = {
    "tenant": "u.tenant_id",
    "session": "u.session_id",
    "model": "coalesce(u.model, '')",
    "day": "substr(u.recorded_at, 1, 10)",
}
"""What usage may be added up by; a session only within its tenant."""

_SUMS: Final = """
count(DISTINCT u.run_id) AS turns,
count(DISTINCT u.run_id || ' ' || u.attempt) AS attempts,
count(*) FILTER (WHERE u.outcome = 'running') AS running_calls
"""

_SUMS_OF: Final = """
count(*) FILTER (WHERE {which}) AS {name}_calls,
sum(tokens_in) FILTER (WHERE {which}) AS {name}_tokens_in,
sum(tokens_out) FILTER (WHERE {which}) AS {name}_tokens_out,
sum(tokens_cached) FILTER (WHERE {which}) AS {name}_tokens_cached,
sum(tokens_reasoning) FILTER (WHERE {which}) AS {name}_tokens_reasoning,
sum(cost_micro_usd) FILTER (WHERE {which}) AS {name}_cost_micro_usd,
sum(estimated_tokens_out) FILTER (WHERE {which}) AS {name}_estimated_tokens_out,
count(*) FILTER (WHERE {which} AND (tokens_in IS NULL OR tokens_out IS NULL)) AS {name}_unknown_calls,
count(*) FILTER (WHERE {which} AND cost_micro_usd IS NULL) AS {name}_unpriced_calls
"""

_ALL_SUMS: Final = ",".join(
    [
        _SUMS,
        _SUMS_OF.format(which="wasted = 0", name="delivered"),
        _SUMS_OF.format(which="wasted = 1 AND outcome <> 'running'", name="wasted"),
    ]
)

# Tenant by tenant, so that the index finds the period of each.  ?1 a tenant or null for all, ?2 and ?3 the first and
# last day of the period or null for the latest thirty, ?4 now.
_TENANTS: Final = """
WITH RECURSIVE tenants (tenant_id) AS (
  SELECT coalesce(?1, (SELECT min(tenant_id) FROM chat_usage))
  UNION ALL
  SELECT (SELECT min(tenant_id) FROM chat_usage WHERE tenant_id > tenants.tenant_id)
  FROM tenants WHERE tenants.tenant_id IS NOT NULL AND ?1 IS NULL
), period AS (SELECT coalesce(?2, date(coalesce(?3, ?4), '-29 days')) AS first_day, coalesce(?3, date(?4)) AS last_day)
"""
# A moment is its day, then a T; of the calendar's last day there is no next one.
_OF_PERIOD: Final = """
FROM period CROSS JOIN tenants CROSS JOIN chat_usage AS u
  ON u.tenant_id = tenants.tenant_id AND u.recorded_at >= first_day AND u.recorded_at < last_day || 'U'
"""

# ?5 and ?6 the group after which the page begins, ?7 how many.
_READ_GROUPS: Final = f"""
{_TENANTS} SELECT * FROM (
  SELECT {{group}} AS owner, {{key}} AS key, {_ALL_SUMS} {_OF_PERIOD} GROUP BY 1, 2)
WHERE ?5 IS NULL OR (owner, key) > (?5, ?6) ORDER BY owner, key LIMIT ?7
"""

_READ_TOTAL: Final = f"""
{_TENANTS} SELECT (SELECT first_day FROM period) AS first_day, (SELECT last_day FROM period) AS last_day,
{_ALL_SUMS} {_OF_PERIOD}
"""


def delete_usage(older_than_days: int) -> Statement:
    """Delete what is so old, a bounded part of it."""
    return Statement(_DELETE_OLD, (NOW, f"-{older_than_days} days"))


def record_calls(calls: Sequence[ModelCall], identity: ChatTurnIdentity, *, delivered: bool) -> list[Statement]:
    """Record calls with a write of their turn, which delivers them or does not; nothing for none."""
    if not calls:
        return []
    rows = _rows(calls, delivered=delivered)
    return [Statement(_RECORD_FENCED, (rows, identity.tenant_id, identity.session_id, NOW))]


def record_calls_late(
    run_id: str, attempt: int, calls: Sequence[ModelCall], identity: ChatTurnIdentity
) -> list[Statement]:
    """Record all calls of an attempt whose turn is another worker's by now: whatever came of them is wasted."""
    rows = _rows(calls, delivered=False)
    return [
        Statement(_RECORD_LATE, (run_id, rows, identity.tenant_id, identity.session_id, NOW)),
        Statement(_SETTLE_LOST, (run_id, attempt, len(calls))),
        Statement(_SETTLE_LATE, (run_id, attempt)),
    ]


def lose_calls(attempt: int, model: str | None, identity: ChatTurnIdentity) -> list[Statement]:
    """Note, with a write of the turn, what attempts before had begun and did not live to end."""
    return [
        Statement(_LOSE_UNKNOWN, (attempt, model, identity.tenant_id, identity.session_id, NOW)),
        Statement(_LOSE_RUNNING, (attempt,)),
    ]


def deliver_continued(attempt: int) -> Statement:
    """Note that what earlier attempts had said before they were lost is a part of the answer."""
    return Statement(_DELIVER_CONTINUED, (attempt,))


def deliver_checkpoints() -> Statement:
    """Note that what the run's steps hold is a part of the answer, or will be."""
    return Statement(_DELIVER_CHECKPOINTS)


def read_spent(run_id: str, session: tuple[str, str], tenant_id: str, *, scopes: Sequence[str]) -> Statement:
    """
    Read what was spent so far, in micro-dollars, a column for each scope.

    Args:
        run_id: The turn's run.
        session: Between which ids the session's runs are.
        tenant_id: Whose.
        scopes: Of ``turn``, ``session`` and ``tenant``, those that are wanted.
    """
    columns = ", ".join(f"coalesce({_SPENT[scope]}, 0) AS {scope}" for scope in scopes)
    # Parameters that no scope uses are still named, since they are numbered.
    return Statement(
        f"SELECT {columns} WHERE coalesce(?1, ?2, ?3, ?4, ?5) IS NOT NULL",
        (run_id, *session, tenant_id, NOW),
    )


def read_usage_of_turn(run_id: str) -> Statement:
    """Read what a turn consumed."""
    return Statement(f"SELECT {_ALL_SUMS} FROM chat_usage AS u WHERE run_id = ?1", (run_id,))


def read_usage(
    by: str,
    *,
    tenant_id: str | None,
    days: tuple[str | None, str | None],
    after: Sequence[str] | None,
    limit: int,
) -> list[Statement]:
    """
    Read what was consumed in a period, by tenant, session, model or day; and all of it together, with the period.

    Args:
        by: One of `KEYS`.
        tenant_id: Whose; None for everybody's.
        days: The first and the last; the thirty days that end today where they are None.
        after: The group after which to begin; None to begin with the first.
        limit: Groups, at most.
    """
    group = KEYS["tenant"] if by == "session" else "''"
    read = _READ_GROUPS.format(group=group, key=KEYS[by])
    period = (tenant_id, *days, NOW)
    return [Statement(read, (*period, *(after or (None, None)), limit)), Statement(_READ_TOTAL, period)]


def _rows(calls: Sequence[ModelCall], *, delivered: bool) -> str:
    """Return the rows of `_COLUMNS` as JSON."""
    return json.dumps(
        [
            [
                call.attempt, call.index, int(not delivered or call.in_vain), call.model,
                call.request_id, call.outcome, call.tokens_in, call.tokens_out, call.tokens_cached,
                call.tokens_reasoning, call.estimated_tokens_out, call.cost_micro_usd, call.tries, call.headers_ms,
                call.first_token_ms, call.duration_ms, call.finish_reason, call.error_code,
            ]
            for call in calls
        ]
    )  # fmt: skip
