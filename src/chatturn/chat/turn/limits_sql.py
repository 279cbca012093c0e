"""
What one user and one tenant may have at once and on a day: looked at, and counted, in the claim's own transaction.

A claim that begins a turn, or tries a failed turn again, is refused where too many turns run, or where too much was
begun or stored since midnight UTC.  Every other claim passes: a replay, a turn that runs, waits or is resumed.
A turn's request is counted with its first claim; a log of more than 16,000 characters with the attempt's last write.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from chatturn.chat.requests import TurnInput
from chatturn.chat.thread.identity import ChatTurnIdentity, tenant_run_ids, version_run_ids
from chatturn.chat.thread.their_sql import Theirs
from chatturn.database.api import NOW, Row, Statement, Value
from chatturn.durable.sql.runs import HELD, LOAD_EVENT, MOMENT
from chatturn.durable.store import Guard
from chatturn.errors import LimitReached, RunEnded
from chatturn.settings import Settings

__all__ = [
    "count_claim",
    "count_file",
    "count_log",
    "delete_allowances",
    "emit_event",
    "read_begun",
    "require_counted",
    "require_taken",
    "within_limits",
]

_RUNNING_RETRY_S: Final = 5
_FULL_RETRY_S: Final = 60
_SMALL_CHARACTERS: Final = 16_000
"""Logs up to this length are not counted: the limit on turns bounds their sum, and each count writes two rows."""

_KEPT_DAYS: Final = 2

# ``{0}`` the run, ``{1}`` and ``{2}`` around the tenant's runs, ``{3}`` the tenant, ``{4}`` the user, ``{5}`` now;
# ``{6}`` to ``{11}`` the limits.  The turn itself is left out: once claimed, it runs, too.
_TODAY: Final = f"substr({MOMENT.format('{5}')}, 1, 10)"
_RUN: Final = f"""
SELECT 1 FROM durable_runs AS r INDEXED BY idx_durable_runs_open<of user>
WHERE r.run_id > {{1}} AND r.run_id < {{2}} AND r.status IN ('pending', 'running') AND r.run_id <> {{0}}
  AND r.lease_expires_at > {MOMENT.format("{5}")}
"""
_OF_USER: Final = " CROSS JOIN chat_turns AS t ON t.run_id = r.run_id AND t.user_id = {4}"
_RUNNING: Final = {
    "running_subject": f"(SELECT count(*) FROM ({_RUN.replace('<of user>', _OF_USER)} LIMIT {{6}})) >= {{6}}",
    "running_tenant": f"(SELECT count(*) FROM ({_RUN.replace('<of user>', '')} LIMIT {{7}})) >= {{7}}",
}


def _counted_today(column: str, user: str, most: str) -> str:
    counted = f"SELECT {column} FROM chat_allowances WHERE tenant_id = {{3}} AND user_id = {user} AND day = {_TODAY}"
    return f"coalesce(({counted}), 0) >= {most}"


_STORED: Final = {
    "bytes_subject": _counted_today("bytes", "{4}", "{10}"),
    "bytes_tenant": _counted_today("bytes", "''", "{11}"),
}
_BEGUN: Final = {
    "turns_subject": _counted_today("turns", "{4}", "{8}"),
    "turns_tenant": _counted_today("turns", "''", "{9}"),
}
_EXISTS: Final = "EXISTS (SELECT 1 FROM durable_runs WHERE run_id = {0})"
_GOES_ON: Final = "EXISTS (SELECT 1 FROM durable_runs WHERE run_id = {0} AND status <> 'failed')"
_REACHED: Final = {
    **{name: f"({sql})" for name, sql in {**_RUNNING, **_STORED}.items()},
    **{name: f"(NOT {_EXISTS} AND {sql})" for name, sql in _BEGUN.items()},
}
_WITHIN: Final = f"{_GOES_ON} OR NOT ({' OR '.join(_REACHED.values())})"
_FINISHED_OR_RUNS: Final = (
    "EXISTS (SELECT 1 FROM durable_runs WHERE run_id = {0} AND status IN ('running', 'completed'))"
)
_UNTIL_MIDNIGHT_S: Final = (
    "CAST(1 + (julianday(date({5}, '+1 day')) - julianday({5})) * 86400 AS INTEGER) AS until_midnight_s"
)
_TOLD: Final = ", ".join([*(f"{sql} AS {name}" for name, sql in _REACHED.items()), _UNTIL_MIDNIGHT_S])

# With the claim, before the turn has a row: a claim of a turn that has one counts nothing.  ?4 the tenant, ?5 the user,
# ?6 now, ?7 how many bytes.  The row with the user '' is that of all the tenant's.
_COUNT_CLAIM: Final = f"""
INSERT INTO chat_allowances (tenant_id, user_id, day, turns, bytes)
SELECT ?4, whose.column1, substr({MOMENT.format("?6")}, 1, 10), 1, ?7
FROM (VALUES (?5), ('')) AS whose
WHERE {HELD} AND NOT EXISTS (SELECT 1 FROM chat_turns WHERE run_id = ?1)
ON CONFLICT (tenant_id, user_id, day) DO UPDATE SET turns = turns + 1, bytes = bytes + excluded.bytes
"""
_COUNT_BYTES: Final = f"""
INSERT INTO chat_allowances (tenant_id, user_id, day, bytes)
SELECT {{tenant}}, {{user}}, substr({MOMENT.format("{now}")}, 1, 10), {{bytes}} WHERE {{condition}}
ON CONFLICT (tenant_id, user_id, day) DO UPDATE SET bytes = bytes + excluded.bytes
"""
_COUNT_LOG: Final = _COUNT_BYTES.format(tenant="?4", user="?5", now="?6", bytes="?7", condition=HELD)

# Of a run that is not over, and has room for another key.  ?1 the run, ?2 the key, ?3 the payload, ?4 now, ?5 the
# most keys, ?6 the tenant, ?7 the user, ?8 and ?9 how many bytes each may have stored.
_BYTES: Final = f"""
coalesce((SELECT bytes FROM chat_allowances
  WHERE tenant_id = ?6 AND user_id = <user> AND day = substr({MOMENT.format("?4")}, 1, 10)), 0)
"""
_REFUSED: Final = {
    "ended": "NOT EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1 AND status NOT IN ('completed', 'failed'))",
    "full": "(SELECT count(*) FROM durable_events WHERE run_id = ?1) >= ?5",
    "stored": f"({_BYTES.replace('<user>', '?7')} >= ?8 OR {_BYTES.replace('<user>', repr(''))} >= ?9)",
}
_EMIT: Final = f"""
INSERT OR IGNORE INTO durable_events (run_id, key, payload_json, emitted_at)
SELECT ?1, ?2, ?3, {MOMENT.format("?4")} WHERE NOT ({" OR ".join(_REFUSED.values())})
"""
_COUNT_EVENT: Final = _COUNT_BYTES.format(
    tenant="?5",
    user="?6",
    now="?4",
    bytes="length(?3)",
    condition=f"""EXISTS (SELECT 1 FROM durable_events
      WHERE run_id = ?1 AND key = ?2 AND payload_json = ?3 AND emitted_at = {MOMENT.format("?4")})""",
)
_WHY_NOT: Final = f"""
SELECT {", ".join(f"{sql} AS {name}" for name, sql in _REFUSED.items())},
  {_UNTIL_MIDNIGHT_S.replace("{5}", "?4")}
WHERE coalesce(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) IS NOT NULL
"""

# ?1 the first version's run, ?2 and ?3 around the others, ?4 agent-runtime's or null.
_READ_BEGUN: Final = """
SELECT DISTINCT manifest_hash FROM durable_runs
WHERE (run_id IN (?1, ?4) OR (run_id > ?2 AND run_id < ?3)) AND status IN ('running', 'completed')
"""

# Both rows at once: the first would change what the second is compared with.  ?1 the tenant, ?2 the user, ?3 now, ?4
# how many bytes, ?5 and ?6 how many each may have stored.
_STORED_BY: Final = f"""
coalesce((SELECT bytes FROM chat_allowances
  WHERE tenant_id = ?1 AND user_id = <user> AND day = substr({MOMENT.format("?3")}, 1, 10)), 0)
"""
_COUNT_FILE: Final = f"""
INSERT INTO chat_allowances (tenant_id, user_id, day, bytes)
SELECT ?1, j.value, substr({MOMENT.format("?3")}, 1, 10), ?4 FROM json_each(json_array(?2, '')) AS j
WHERE {_STORED_BY.replace("<user>", "?2")} < ?5 AND {_STORED_BY.replace("<user>", repr(""))} < ?6
ON CONFLICT (tenant_id, user_id, day) DO UPDATE SET bytes = bytes + excluded.bytes
RETURNING 1 AS counted
"""
_MIDNIGHT: Final = f"SELECT {_UNTIL_MIDNIGHT_S.replace('{5}', '?1')}"

# Only from 03:00 to 04:00 UTC: the table has no index by day, so a deletion reads all of it.
_DELETE_OLD: Final = f"""
DELETE FROM chat_allowances
WHERE strftime('%H', ?1) = '03' AND day < date({MOMENT.format("?1")}, '-{_KEPT_DAYS} days')
"""

_NO_LIMIT: Final = 2**52


def within_limits(turn: TurnInput) -> list[Guard]:
    """Let a turn begin, or begin again, only within the limits of its user and tenant; one that was begun goes on."""
    if (refusal := turn.refusal) is not None:
        return [Guard(sql=_FINISHED_OR_RUNS, params=(turn.run_id,), refusal=lambda _row: refusal, only_for_start=True)]
    if turn.asked_again:
        return []
    settings, identity = turn.deployment.settings, turn.identity
    limits: tuple[int, ...] = (
        settings.running_turns_subject,
        settings.running_turns_tenant,
        settings.turns_subject_per_day,
        settings.turns_tenant_per_day,
        settings.bytes_subject_per_day,
        settings.bytes_tenant_per_day,
    )
    whose = (identity.tenant_id, identity.user_id)
    params = (turn.run_id, *tenant_run_ids(identity.tenant_id), *whose, NOW, *map(_limit, limits))
    return [Guard(sql=_WITHIN, params=params, refusal=_refusal, told=_TOLD, only_for_start=True)]


def read_begun(identity: ChatTurnIdentity, theirs: Theirs | None) -> Statement:
    """Read the manifests of a turn's versions that are finished or run; no row if there is none."""
    return Statement(_READ_BEGUN, (*version_run_ids(identity), None if theirs is None else theirs.run_id))


def count_claim(turn: TurnInput) -> list[Statement]:
    """Count a turn and what it asks, with its first claim and before it has a row."""
    request, identity = turn.request, turn.identity
    said: Sequence[Mapping[str, Any] | Sequence[Any]] = (
        request.metadata,
        request.parts,
        request.parameters,
        request.history or (),
        request.behind,
    )
    size = len(request.message.encode()) + sum(map(_json_bytes, said))
    return [Statement(_COUNT_CLAIM, (identity.tenant_id, identity.user_id, NOW, size))]


def count_log(identity: ChatTurnIdentity, characters: int) -> list[Statement]:
    """Count the bytes of an attempt's log, with its last write; nothing for a short log."""
    if characters <= _SMALL_CHARACTERS:
        return []
    return [Statement(_COUNT_LOG, (identity.tenant_id, user, NOW, characters)) for user in _counted(identity)]


def emit_event(turn: ChatTurnIdentity, run_id: str, key: str, payload_json: str, settings: Settings) -> list[Statement]:
    """
    Record an event of a turn's run, unless the run is over, or has too many, or too much is stored; the first counts.

    Args:
        turn: The turn, whose user emits the event.
        run_id: Its run.
        key: The event's key.
        payload_json: The event's payload as JSON.
        settings: With the limits.

    Returns:
        Statements, of which the last two read the event, and why there is none.
    """
    event = (run_id, key, payload_json, NOW)
    most = (settings.bytes_subject_per_day, settings.bytes_tenant_per_day)
    limits = (_limit(settings.run_events), turn.tenant_id, turn.user_id, *map(_limit, most))
    return [
        Statement(_EMIT, (*event, *limits)),
        *(Statement(_COUNT_EVENT, (*event, turn.tenant_id, user)) for user in _counted(turn)),
        Statement(LOAD_EVENT, (run_id, key)),
        Statement(_WHY_NOT, (*event, *limits)),
    ]


def count_file(tenant_id: str, user_id: str, size: int, settings: Settings) -> list[Statement]:
    """Count a file before it is kept, unless too much is stored; for `require_counted`."""
    most = (settings.bytes_subject_per_day, settings.bytes_tenant_per_day)
    return [Statement(_COUNT_FILE, (tenant_id, user_id, NOW, size, *map(_limit, most))), Statement(_MIDNIGHT, (NOW,))]


def require_counted(counted: Sequence[Row], midnight: Row) -> None:
    """
    Raise why a file was not counted, by the rows of `count_file`.

    Raises:
        LimitReached: Too much is stored.
    """
    if not counted:
        raise LimitReached("too much is stored today", retry_after_s=int(midnight["until_midnight_s"] or 1))


def require_taken(row: Row, run_id: str) -> None:
    """
    Raise why an event was not taken, by the last row of `emit_event`.

    Raises:
        RunEnded: Its run is over.
        LimitReached: The run has too many events, or too much is stored.
    """
    if row["ended"]:
        raise RunEnded("it takes no further event", run_id=run_id)
    if row["full"]:
        raise LimitReached("the run has too many events", retry_after_s=_FULL_RETRY_S)
    if row["stored"]:
        raise LimitReached("too much is stored today", retry_after_s=int(row["until_midnight_s"] or 1))


def delete_allowances() -> Statement:
    """Delete the counts of days that are over."""
    return Statement(_DELETE_OLD, (NOW,))


def _json_bytes(value: Mapping[str, Any] | Sequence[Any]) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode()) if value else len("{}")


def _limit(setting: int) -> Value:
    return setting or _NO_LIMIT


def _counted(identity: ChatTurnIdentity) -> tuple[str, str]:
    """Return the ids under which is counted: the user's, and the one for the whole tenant."""
    return identity.user_id, ""


def _refusal(row: Row) -> Exception:
    reached = [name for name in _REACHED if row[name]]
    soon = any(name in _RUNNING for name in reached)
    wait_s = _RUNNING_RETRY_S if soon else int(row["until_midnight_s"] or 1)
    return LimitReached(f"reached: {', '.join(reached)}", retry_after_s=wait_s)
