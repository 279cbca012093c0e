"""
The SQL of what model calls have consumed: recorded with a turn's writes, and added up for operators and budgets.

In statements that join a turn's write, ``?1`` to ``?3`` are its lease (see `chatturn.durable.sql.runs`).
"""

import json
from collections.abc import Sequence
from typing import Final

from chatturn.chat.thread.identity import ChatTurnIdentity, session_run_ids, tenant_run_ids
from chatturn.chat.usage.calls import ModelCall
from chatturn.database.api import NOW, Statement
from chatturn.database.ledger_sums import KNOWN_SUMS, PARTS, SUMMED
from chatturn.durable.sql.runs import HELD, IS_LATER_VERSION, MOMENT
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
    "duration_ms", "finish_reason", "error_code", "estimated_cost_micro_usd",
)  # fmt: skip
_VALUES: Final = ", ".join(f"json_extract(value, '$[{at}]')" for at in range(len(_COLUMNS)))
_UPDATES: Final = ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS[3:])

# A call has one row, under the attempt that made it, and is wasted until it is delivered.
_RECORD_FIRST: Final = f"""
INSERT INTO chat_usage ({", ".join(_COLUMNS)}, run_id, tenant_id, session_id, recorded_at)
SELECT {_VALUES}, ?1, {{identity}}, {{moment}}
FROM json_each({{calls}}) WHERE {{fence}}
ON CONFLICT (run_id, attempt, call_index) DO """

# The row only gains: the call's end replaces its beginning, and a delivery is never taken back.
_RECORD: Final = f"""{_RECORD_FIRST}UPDATE SET {_UPDATES}, wasted = min(chat_usage.wasted, excluded.wasted)
WHERE chat_usage.outcome IN ('running', 'lost') OR excluded.wasted < chat_usage.wasted
"""

_FENCED: Final = {"calls": "?4", "identity": "?5, ?6", "moment": MOMENT.format("?7"), "fence": HELD}
_RECORD_FENCED: Final = _RECORD.format(**_FENCED)

# For calls of which no write has told yet.  SQLite compiles half as long for it, since no trigger of an update is
# part of it.
_RECORD_NEW: Final = f"{_RECORD_FIRST}NOTHING".format(**_FENCED)

# The turn, not one that has its name since it was deleted.
_BEGUN: Final = "EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1 AND created_at = {})"

# Recorded by a worker that has lost its turn: the money is spent all the same.
_RECORD_LATE: Final = _RECORD.format(
    calls="?2", identity="?3, ?4", moment=MOMENT.format("?5"), fence=_BEGUN.format("?6")
)

# The worker of attempt ?2 knows all of its ?3 calls: none of them is lost, and the attempt has no further call.  A call
# that no write of the turn delivers gets `LeaseLost` as its error, which tells later attempts that no call is lost.
_SETTLE_LOST: Final = f"""
DELETE FROM chat_usage WHERE run_id = ?1 AND attempt = ?2 AND call_index >= ?3 AND outcome = 'lost'
  AND {_BEGUN.format("?4")}
"""
_SETTLE_LATE: Final = f"""
UPDATE chat_usage SET error_code = coalesce(error_code, '{LeaseLost.code}')
WHERE run_id = ?1 AND attempt = ?2 AND wasted = 1 AND {_BEGUN.format("?3")}
"""

# For budgets a lost call costs what the turn had reserved.
_RESERVED: Final = "(SELECT nullif(reserved_micro_usd, 0) FROM chat_turns WHERE run_id = ?1)"

# The first attempt of this run: those before a later version's own were attempts at other versions.
_FIRST_ATTEMPT: Final = f"""
iif({IS_LATER_VERSION.format("?1")}, (
  SELECT min(t.first_attempt, coalesce(
    (SELECT attempt FROM chat_segments WHERE run_id = ?1 ORDER BY first_seq LIMIT 1), t.first_attempt))
  FROM chat_turns AS t WHERE t.run_id = ?1), 1)
"""

# Lost calls of the attempts before ?4.  The latest attempt on record has already recorded those of the attempts before
# it, so the search begins with that attempt.
# ?5 the model, ?6 and ?7 tenant and session, ?8 now.
_LOSE_UNKNOWN: Final = f"""
INSERT INTO chat_usage (run_id, attempt, call_index, model, outcome, wasted, tenant_id, session_id, recorded_at,
                        estimated_cost_micro_usd)
WITH RECURSIVE before (attempt) AS (
  SELECT coalesce((SELECT max(attempt) FROM chat_usage WHERE run_id = ?1 AND attempt < ?4), {_FIRST_ATTEMPT})
  UNION ALL SELECT attempt + 1 FROM before WHERE attempt < ?4 - 1
)
SELECT ?1, b.attempt,
  (SELECT coalesce(max(call_index) + 1, 0) FROM chat_usage WHERE run_id = ?1 AND attempt = b.attempt),
  ?5, 'lost', 1, ?6, ?7, {MOMENT.format("?8")}, {_RESERVED}
FROM before AS b WHERE b.attempt < ?4 AND {HELD}
  AND NOT EXISTS (SELECT 1 FROM chat_segments WHERE run_id = ?1 AND attempt = b.attempt AND ended)
  AND NOT EXISTS (
    SELECT 1 FROM chat_usage WHERE run_id = ?1 AND attempt = b.attempt
      AND (outcome IN ('running', 'lost') OR error_code = '{LeaseLost.code}'))
"""

# The lines of an attempt with one call are that call's output, except the first line, which begins the attempt.
# A call that reported while it ran is lost as well: it may have used more since.
_LOSE_RUNNING: Final = f"""
UPDATE chat_usage AS u SET outcome = 'lost',
  estimated_tokens_out = CASE WHEN call_index = 0 AND tokens_out IS NULL THEN nullif((
  SELECT sum(last_seq - first_seq + 1) - 1 FROM chat_segments AS s
  WHERE s.run_id = ?1 AND s.attempt = u.attempt), 0) ELSE estimated_tokens_out END,
  estimated_cost_micro_usd = iif(cost_micro_usd IS NULL, coalesce(estimated_cost_micro_usd, {_RESERVED}), NULL)
WHERE run_id = ?1 AND attempt < ?4 AND outcome IN ('running', 'lost') AND {HELD}
"""

# An attempt that went on with the text of earlier attempts delivers their calls: attempts in its log that broke off.
_DELIVER_CONTINUED: Final = f"""
UPDATE chat_usage SET wasted = 0
WHERE run_id = ?1 AND attempt < ?4 AND outcome <> 'failed' AND {HELD} AND attempt IN (
  SELECT s.attempt FROM chat_segments AS s JOIN chat_turns AS t ON t.run_id = s.run_id
  WHERE s.run_id = ?1 AND s.first_seq >= t.log_from GROUP BY s.attempt HAVING max(s.ended) = 0)
"""

# The result of a model call's step names the call's request.
_DELIVER_CHECKPOINTS: Final = f"""
UPDATE chat_usage SET wasted = 0
WHERE run_id = ?1 AND {HELD} AND request_id IN (
  SELECT result_json ->> '$.requestId' FROM durable_steps WHERE run_id = ?1 AND step_index > 0 AND kind = 'llm')
"""

_DELETED_AT_ONCE: Final = 500

# Tenant by tenant, so that the index is used.
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

# What budgets are compared with, each asked for where it has a limit: ?1 the turn's run, ?2 the tenant, ?3 the session,
# ?4 now, ?5 and ?6 around the session's runs, ?7 and ?8 around the tenant's.  What another turn has reserved counts as
# long as its lease.
_RESERVED_BY_OTHERS: Final = f"""(SELECT sum(t.reserved_micro_usd)
  FROM durable_runs AS r INDEXED BY idx_durable_runs_open CROSS JOIN chat_turns AS t ON t.run_id = r.run_id
  WHERE r.run_id > {{first}} AND r.run_id < {{last}} AND r.run_id <> ?1 AND r.status IN ('pending', 'running')
    AND +r.status = 'running' AND r.lease_expires_at > {MOMENT.format("?4")})"""
_BOTH: Final = "coalesce({spent}, 0) + coalesce({reserved}, 0)"
_TODAY: Final = f"substr({MOMENT.format('?4')}, 1, 10)"
_SPENT: Final = {
    "turn": """(SELECT sum(coalesce(cost_micro_usd, estimated_cost_micro_usd, 0)) FROM chat_usage WHERE run_id = ?1)""",
    "session": _BOTH.format(
        spent="""(SELECT sum(budget_micro_usd) FROM chat_usage_sums
                  WHERE tenant_id = ?2 AND kind = 'session' AND key = ?3)""",
        reserved=_RESERVED_BY_OTHERS.format(first="?5", last="?6"),
    ),
    "tenant": _BOTH.format(
        spent=f"""(SELECT budget_micro_usd FROM chat_usage_sums
                   WHERE tenant_id = ?2 AND kind = 'day' AND key = '' AND day = {_TODAY})""",
        reserved=_RESERVED_BY_OTHERS.format(first="?7", last="?8"),
    ),
}

_RESERVE: Final = f"UPDATE chat_turns SET reserved_micro_usd = ?4 WHERE run_id = ?1 AND {HELD}"

KEYS: Final = {
    "tenant": ("day", "u.tenant_id"),
    "session": ("session", "u.key"),
    "model": ("model", "u.key"),
    "day": ("day", "u.day"),
}
"""What usage may be added up by: of which kind the sums are, and what of them tells the groups apart."""

# The same of a row of the ledger.
_KEY_OF_CALL: Final = {
    "tenant": "c.tenant_id",
    "session": "c.session_id",
    "model": "coalesce(c.model, '')",
    "day": "substr(c.recorded_at, 1, 10)",
}

_CALLS: Final = tuple(f"{part}_{name}" for part in PARTS for name in ("calls", "unknown_calls", "unpriced_calls"))

_ALL_SUMS: Final = ", ".join(
    [
        *(f"sum({name}) AS {name}" for name in ("turns", "attempts", "running_calls", *_CALLS)),
        *(f"iif(sum({name}_known) > 0, sum({name}), NULL) AS {name}" for name in KNOWN_SUMS),
    ]
)
_NAMES: Final = ("running_calls", *_CALLS, *KNOWN_SUMS)

_OF_CALLS: Final = {
    "calls": "count(*) FILTER (WHERE {which})",
    "unknown_calls": "count(*) FILTER (WHERE {which} AND (tokens_in IS NULL OR tokens_out IS NULL))",
    "unpriced_calls": "count(*) FILTER (WHERE {which} AND cost_micro_usd IS NULL)",
    **{name: f"sum({name}) FILTER (WHERE {{which}})" for name in SUMMED},
}
_WHICH: Final = {"delivered": "wasted = 0", "wasted": "wasted = 1 AND outcome <> 'running'"}
_SUMS_OF_CALLS: Final = ", ".join(
    [
        "count(DISTINCT run_id) AS turns",
        "count(DISTINCT run_id || ' ' || attempt) AS attempts",
        "count(*) FILTER (WHERE outcome = 'running') AS running_calls",
        *(
            f"{sql.format(which=which)} AS {part}_{name}"
            for part, which in _WHICH.items()
            for name, sql in _OF_CALLS.items()
        ),
    ]
)

# Tenant by tenant, so that the key is used.  ?1 a tenant or null for all, ?2 and ?3 the first and last day of the
# period or null for the latest 30 days, ?4 now.
_TENANTS: Final = """
WITH RECURSIVE tenants (tenant_id) AS (
  SELECT coalesce(?1, (SELECT min(tenant_id) FROM chat_usage_sums))
  UNION ALL
  SELECT (SELECT min(tenant_id) FROM chat_usage_sums WHERE tenant_id > tenants.tenant_id)
  FROM tenants WHERE tenants.tenant_id IS NOT NULL AND ?1 IS NULL
), period AS (SELECT coalesce(?2, date(coalesce(?3, ?4), '-29 days')) AS first_day, coalesce(?3, date(?4)) AS last_day)
"""

# A turn, or an attempt, of n days is counted n times in the sum of its days, so n - 1 times too often.
_TWICE: Final = """
SELECT owner, key, sum(days - 1) AS too_many FROM (
  SELECT {owner} AS owner, {key} AS key, count(DISTINCT substr(c.recorded_at, 1, 10)) AS days
  FROM period CROSS JOIN tenants CROSS JOIN chat_usage_spans AS s ON s.tenant_id = tenants.tenant_id
  CROSS JOIN chat_usage AS c ON c.run_id = s.run_id
    AND substr(c.recorded_at, 1, 10) BETWEEN first_day AND last_day
  GROUP BY 1, 2, c.run_id{attempt})
GROUP BY 1, 2
"""

_OF_TENANTS: Final = "tenants CROSS JOIN chat_usage_sums AS u ON u.tenant_id = tenants.tenant_id"

# Of sessions there are many, so those of the page are found first, in the order of the table's key; the plus keeps
# SQLite from leaving the kind out of that order, which it would then not recognise.
_OF_SESSIONS: Final = """
(SELECT p.tenant_id, p.key FROM chat_usage_sums AS p
 WHERE p.tenant_id >= coalesce(?5, ?1, '') AND p.tenant_id <= coalesce(?1, char(1114111)) AND +p.kind = 'session'
   AND (?5 IS NULL OR (p.tenant_id, p.key) > (?5, ?6)) AND p.turns > 0
   AND p.day BETWEEN (SELECT first_day FROM period) AND (SELECT last_day FROM period)
 GROUP BY p.tenant_id, p.kind, p.key ORDER BY p.tenant_id, p.kind, p.key LIMIT ?7) AS page
CROSS JOIN chat_usage_sums AS u ON u.tenant_id = page.tenant_id AND u.key = page.key
"""

# ?5 and ?6 the group after which the page begins, ?7 how many.
_READ_GROUPS: Final = f"""
{_TENANTS}, found AS MATERIALIZED (
  SELECT {{owner}} AS owner, {{key}} AS key, {_ALL_SUMS}
  FROM period CROSS JOIN {{groups}} AND u.kind = '{{kind}}' AND u.day BETWEEN first_day AND last_day
  WHERE u.turns > 0 AND (?5 IS NULL OR ({{owner}}, {{key}}) > (?5, ?6))
  GROUP BY 1, 2 ORDER BY 1, 2 LIMIT ?7)
SELECT f.owner, f.key, f.turns - coalesce(t.too_many, 0) AS turns, f.attempts - coalesce(a.too_many, 0) AS attempts,
  {", ".join(f"f.{name}" for name in _NAMES)}
FROM found AS f LEFT JOIN ({{turns_twice}}) AS t ON t.owner = f.owner AND t.key = f.key
  LEFT JOIN ({{attempts_twice}}) AS a ON a.owner = f.owner AND a.key = f.key
ORDER BY 1, 2
"""

_READ_TOTAL: Final = f"""
{_TENANTS}, found AS MATERIALIZED (
  SELECT first_day, last_day, {_ALL_SUMS}
  FROM period LEFT JOIN (tenants CROSS JOIN chat_usage_sums AS u ON u.tenant_id = tenants.tenant_id AND u.kind = 'day')
    ON u.day BETWEEN first_day AND last_day AND u.turns > 0)
SELECT first_day, last_day,
  coalesce(f.turns, 0) - coalesce((SELECT sum(too_many) FROM ({{turns_twice}})), 0) AS turns,
  coalesce(f.attempts, 0) - coalesce((SELECT sum(too_many) FROM ({{attempts_twice}})), 0) AS attempts,
  {", ".join(f"coalesce(f.{name}, 0) AS {name}" for name in ("running_calls", *_CALLS))},
  {", ".join(f"f.{name}" for name in KNOWN_SUMS)}
FROM found AS f
"""


def delete_usage(older_than_days: int) -> Statement:
    """Delete a bounded number of rows that are too old."""
    return Statement(_DELETE_OLD, (NOW, f"-{older_than_days} days"))


def record_calls(
    calls: Sequence[ModelCall], identity: ChatTurnIdentity, *, delivered: bool, new: bool
) -> list[Statement]:
    """
    Record calls with a write of their turn.

    Args:
        calls: The calls, at least one.
        identity: The turn's.
        delivered: Whether the write delivers them.
        new: Whether no write before, not even one that failed, was to record any of them.
    """
    rows = _rows(calls, delivered=delivered)
    return [Statement(_RECORD_NEW if new else _RECORD_FENCED, (rows, identity.tenant_id, identity.session_id, NOW))]


def record_calls_late(
    run_id: str, begun: str, attempt: int, calls: Sequence[ModelCall], identity: ChatTurnIdentity
) -> list[Statement]:
    """
    Record all calls of an attempt whose turn is another worker's by now: whatever came of them is wasted.

    Nothing is recorded if the turn, which was *begun* at that moment, is deleted, also if another one has its name.
    """
    rows = _rows(calls, delivered=False)
    return [
        Statement(_RECORD_LATE, (run_id, rows, identity.tenant_id, identity.session_id, NOW, begun)),
        Statement(_SETTLE_LOST, (run_id, attempt, len(calls), begun)),
        Statement(_SETTLE_LATE, (run_id, attempt, begun)),
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


def reserve(micro_usd: int) -> Statement:
    """Reserve what a turn may spend, with its claim and behind its turn's row; as long as its lease, others see it."""
    return Statement(_RESERVE, (micro_usd,))


def read_spent(run_id: str, tenant_id: str, session_id: str, *, scopes: Sequence[str]) -> Statement:
    """
    Read what was spent so far, or is reserved by other turns, in micro-dollars, a column for each scope.

    Args:
        run_id: The turn's run.
        tenant_id: The tenant.
        session_id: The session.
        scopes: The scopes to read, of ``turn``, ``session`` and ``tenant``.
    """
    columns = ", ".join(f"coalesce({_SPENT[scope]}, 0) AS {scope}" for scope in scopes)
    # Parameters that no scope uses are still named, since they are numbered.
    return Statement(
        f"SELECT {columns} WHERE coalesce(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) IS NOT NULL",
        (run_id, tenant_id, session_id, NOW, *session_run_ids(tenant_id, session_id), *tenant_run_ids(tenant_id)),
    )


def read_usage_of_turn(run_id: str) -> Statement:
    """Read what a turn consumed."""
    return Statement(f"SELECT {_SUMS_OF_CALLS} FROM chat_usage WHERE run_id = ?1", (run_id,))


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
        tenant_id: The tenant; None for all tenants.
        days: The first and the last; the thirty days that end today where they are None.
        after: The group after which to begin; None to begin with the first.
        limit: Groups, at most.
    """
    kind, key = KEYS[by]
    owner, owner_of_call, of = (
        ("u.tenant_id", "c.tenant_id", _OF_SESSIONS) if by == "session" else ("''", "''", _OF_TENANTS)
    )
    twice = _twice(owner_of_call, _KEY_OF_CALL[by])
    groups = _READ_GROUPS.format(kind=kind, key=key, owner=owner, groups=of, **twice)
    total = _READ_TOTAL.format(**_twice("''", "''"))
    period = (tenant_id, *days, NOW)
    return [Statement(groups, (*period, *(after or (None, None)), limit)), Statement(total, period)]


def _twice(owner: str, key: str) -> dict[str, str]:
    counted = {"turns_twice": "", "attempts_twice": ", c.attempt"}
    return {name: _TWICE.format(owner=owner, key=key, attempt=attempt) for name, attempt in counted.items()}


def _rows(calls: Sequence[ModelCall], *, delivered: bool) -> str:
    """Return the rows of `_COLUMNS` as JSON."""
    return json.dumps(
        [
            [
                call.attempt, call.index, int(not delivered or call.in_vain), call.model,
                call.request_id, call.outcome, call.tokens_in, call.tokens_out, call.tokens_cached,
                call.tokens_reasoning, call.estimated_tokens_out, call.cost_micro_usd, call.tries, call.headers_ms,
                call.first_token_ms, call.duration_ms, call.finish_reason, call.error_code,
                call.estimated_cost_micro_usd,
            ]
            for call in calls
        ]
    )  # fmt: skip
