"""
Fills a local database with turns: copies of a few that the code itself has answered, with all their rows.

What makes a turn another one is its ids, its moments, and its session's, user's and tenant's names; the columns are
found by their names in the schema, so that a new one is copied, too.  What the ledger adds up to is added up at the
end, by the statements that a migration does it with: a million calls, one by one, would take the triggers minutes.
"""

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chatturn.chat.hooks.hooks import FinishedTurn
from chatturn.chat.log.compaction import compact_logs
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_manifest
from chatturn.database.api import Statement
from chatturn.database.ledger_sums import fill_sums
from chatturn.database.sqlite import SqliteDatabase, split_statements
from chatturn.durable.identifiers import manifest_hash
from chatturn.events import text_delta, usage_event
from chatturn.settings import Settings
from chatturn.usage.prices import PriceTable, parse_prices
from tests.support.isolates import Isolate
from tests.support.turns import Product

__all__ = ["CALLS", "DAYS", "TENANTS", "USERS", "Volume", "fill"]

CALLS: Final = 10
"""Of the model, in each turn."""

TENANTS: Final = 10
USERS: Final = 20
"""Of each tenant."""

DAYS: Final = 28
"""Over which the turns are spread, the last of them today; below the thirty that usage is told of."""

_TURNS_OF_A_SESSION: Final = 10
_ONE_FAILED_OF: Final = 50
_ONE_WAITS_OF: Final = 40
_MODELS: Final = 5
_MESSAGE: Final = "Why?"
_PRICES: Final = '{"bench": {"in": 1, "out": 4}}'

# Each is copied under the conditions that the code writes it under.
_TABLES: Final = {
    "durable_runs": "1",
    "durable_steps": "NOT v.failed",
    "chat_turns": "1",
    "chat_segments": "1",
    "chat_messages": "NOT v.failed",
    "chat_outbox": "1",
}

_MOMENTS: Final = ("created_at", "updated_at", "completed_at", "started_at", "active_at", "recorded_at", "next_call_at")
_VARIED: Final = {
    "run_id": "v.run_id",
    "tenant_id": "v.tenant_id",
    "session_id": "v.session_id",
    "scenario_id": "v.session_id",
    "user_id": "v.user_id",
    "turn_index": "v.turn_index",
    "manifest_hash": "v.manifest_hash",
    **{name: f"iif(o.{name} IS NULL, NULL, v.moment)" for name in _MOMENTS},
}


@dataclass(frozen=True, kw_only=True)
class Volume:
    """
    How much there is.

    Attributes:
        turns: How many, a hundred at least.  A tenth of them are one session's; the others' sessions have ten each.
        due: Of each kind, how many the sweep finds to do, on top: orphans, hook calls, and turns that are too old.
    """

    turns: int
    due: int = 5


def fill(file: Path, volume: Volume) -> None:
    """Fill the database *file*, whose schema is there and which nobody has open."""
    asyncio.run(_answer_templates(file))
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -200000")
        connection.execute("BEGIN")
        _name_turns(connection, volume)
        for table, condition in _TABLES.items():
            _copy(connection, table, condition)
        connection.execute(_SESSIONS)
        connection.execute(_ALLOWANCES)
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        _copy(
            connection,
            "chat_usage",
            "1",
            {"call_index": "c.n", "model": "v.model", "request_id": "v.run_id || c.n"},
            also=f"CROSS JOIN (SELECT n FROM numbers WHERE n < {CALLS}) AS c",
        )
        made_again = [text for _, text in triggers]
        for text in (*_LEFT_WAITING, *_LEFT_DUE, *split_statements(fill_sums("1")), *made_again):
            connection.execute(text)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class _Told(Product):
    """A product with a hook, so that each turn has a call of it on record."""

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        """Take note."""


async def _answer_templates(file: Path) -> None:
    """Let the code answer a turn, and fail at another, and make their logs short."""
    pieces = [text_delta(f"lorem {n} ") for n in range(20)]
    said = [*pieces, usage_event(model="bench", tokensIn=100, tokensOut=20)]
    with SqliteDatabase(file) as database:
        for session, product in {"good": _Told(*said), "bad": _Told(*said, ValueError("the model fails"))}.items():
            isolate = Isolate(database, product, prices=PriceTable(parse_prices(_PRICES)))
            path = f"/v1/sessions/{session}/turns/0"
            await (await isolate.ask("POST", path, {"message": _MESSAGE}, x_tenant="template")).lines()
            await asyncio.gather(*isolate._tasks)  # noqa: SLF001 - what is done after the answer
        await database.batch([Statement("UPDATE chat_turns SET updated_at = '2026-01-01T00:00:00.000Z'")])
        await compact_logs(database, lambda _queries: True)


def _name_turns(connection: sqlite3.Connection, volume: Volume) -> None:
    """
    Make a table of the turns that are to be there.

    The first tenth are of the session ``long`` of ``ann``; every tenant has as many of the others as any other.  Those
    of ``due`` come on top: orphans, then those with a hook call that is due, then those that are too old.
    """
    all_turns = volume.turns + 3 * volume.due
    connection.create_function("manifest_hash", 3, _manifest_hash, deterministic=True)
    [(stored,)] = connection.execute("SELECT manifest_hash FROM durable_runs WHERE run_id = 'chat:template:good:0'")
    assert stored == _manifest_hash("template", "good", 0)
    connection.execute("CREATE TEMP TABLE numbers (n INTEGER PRIMARY KEY)")
    connection.execute(
        "INSERT INTO numbers WITH RECURSIVE c (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < ?1 - 1) "
        "SELECT n FROM c",
        (max(all_turns, CALLS),),
    )
    connection.execute(
        f"""CREATE TEMP TABLE volume AS
        SELECT *, 'chat:' || tenant_id || ':' || session_id || ':' || turn_index AS run_id,
          strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || iif(due = 'old', 400, n % {DAYS}) || ' days', '-1 minutes')
            AS moment,
          iif(failed, 'bad', 'good') AS template, 'model-' || (n % {_MODELS}) AS model,
          manifest_hash(tenant_id, session_id, turn_index) AS manifest_hash
        FROM (SELECT n,
            iif(n < :long, 'tenant-0', 'tenant-' || (n / {_TURNS_OF_A_SESSION} % {TENANTS})) AS tenant_id,
            CASE WHEN n < :long THEN 'long' WHEN n < :turns THEN 's' || (n / {_TURNS_OF_A_SESSION}) ELSE 'due' || n END
              AS session_id,
            iif(n < :long, 'ann', 'user-' || (n / {_TURNS_OF_A_SESSION * TENANTS} % {USERS})) AS user_id,
            CASE WHEN n < :long THEN n WHEN n < :turns THEN n % {_TURNS_OF_A_SESSION} ELSE 0 END AS turn_index,
            CASE WHEN n < :turns THEN NULL WHEN n < :turns + :due THEN 'orphan' WHEN n < :turns + 2 * :due THEN 'hook'
              ELSE 'old' END AS due,
            n % {_ONE_FAILED_OF} = {_ONE_FAILED_OF} - 1 AND n < :turns AS failed,
            n % {_ONE_WAITS_OF} = {_ONE_WAITS_OF} - 2 AND n >= :long AND n < :turns AS waits
          FROM numbers WHERE n < :all)""",
        {"long": volume.turns // 10, "turns": volume.turns, "due": volume.due, "all": all_turns},
    )


def _manifest_hash(tenant_id: str, session_id: str, turn_index: int) -> str:
    identity = ChatTurnIdentity(tenant_id=tenant_id, session_id=session_id, user_id="ann", turn_index=turn_index)
    settings = Settings()
    manifest = turn_manifest(
        identity, project_id=settings.project_id, domain=settings.domain, user_message=_MESSAGE, model=None
    )
    return manifest_hash(manifest)


def _copy(
    connection: sqlite3.Connection,
    table: str,
    condition: str,
    varied: Mapping[str, str] | None = None,
    also: str = "",
) -> None:
    columns = [str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")]
    values = [{**_VARIED, **(varied or {})}.get(name, f"o.{name}") for name in columns]
    connection.execute(
        f"""INSERT INTO {table} ({_names(columns)}) SELECT {_names(values)}
        FROM temp.volume AS v {also} CROSS JOIN {table} AS o ON o.run_id = 'chat:template:' || v.template || ':0'
        WHERE {condition}"""
    )


def _names(columns: Sequence[str]) -> str:
    return ", ".join(columns)


_SESSIONS: Final = """
INSERT INTO chat_sessions (tenant_id, session_id, owner_id, created_at, revision, active_at)
SELECT tenant_id, session_id, user_id, min(moment), count(*), max(moment) FROM temp.volume GROUP BY 1, 2
"""
_ALLOWANCES: Final = """
INSERT INTO chat_allowances (tenant_id, user_id, day, turns, bytes)
SELECT tenant_id, user_id, substr(moment, 1, 10), count(*), 4 * count(*) FROM temp.volume GROUP BY 1, 2, 3
"""

# Turns that wait for an approval: as `suspend` leaves them, and without an answer.
_WAITING: Final = "run_id IN (SELECT run_id FROM temp.volume WHERE waits AND NOT failed)"
_LEFT_WAITING: Final = (
    f"UPDATE durable_runs SET status = 'suspended', completed_at = NULL WHERE {_WAITING}",
    f"UPDATE durable_steps SET status = 'running', result_json = NULL, completed_at = NULL WHERE {_WAITING}",
    f"DELETE FROM chat_messages WHERE {_WAITING}",
    f"DELETE FROM chat_outbox WHERE {_WAITING}",
    f"""INSERT INTO durable_waits (run_id, step_index, event_key, wake_at)
    SELECT run_id, 0, 'approve:x', '2099-01-01T00:00:00.000Z' FROM durable_runs WHERE {_WAITING}""",
)

# Turns whose worker was lost, a minute ago, before it had said anything; and hook calls that are due.
_ORPHANS: Final = "run_id IN (SELECT run_id FROM temp.volume WHERE due = 'orphan')"
_LEFT_DUE: Final = (
    f"""UPDATE durable_runs SET status = 'running', completed_at = NULL, lease_holder_id = 'lost',
    lease_expires_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 minutes') WHERE {_ORPHANS}""",
    f"UPDATE durable_steps SET status = 'running', result_json = NULL, completed_at = NULL WHERE {_ORPHANS}",
    *(f"DELETE FROM {table} WHERE {_ORPHANS}" for table in ("chat_messages", "chat_outbox", "chat_segments")),
    """UPDATE chat_outbox SET status = 'pending'
    WHERE run_id IN (SELECT run_id FROM temp.volume WHERE due = 'hook')""",
)
