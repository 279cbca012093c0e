"""
A database as agent-runtime leaves it: its version 1 script, and turns in every state it can leave them in.

Written from docs/reference/agent-runtime.md: ids without a tenant, holders that name a host, timestamps of a
worker's clock, no epoch.
"""

import json
from pathlib import Path
from typing import Any, Final

from chatturn.chat.thread.identity import ChatTurnIdentity, turn_manifest
from chatturn.database.api import Database, Statement
from chatturn.database.schema import schema_statements
from chatturn.durable.records import DurableRunManifest
from chatturn.jsontext.canonical import canonical_hash
from tests.support.clock import Clock

__all__ = ["ANSWER", "COMPLETED", "FAILED", "INTERRUPTED", "LIVE", "PROJECT", "RETRIED", "UNENDED",
           "identity_of", "legacy_id", "make_version_1", "manifest_of", "rows_of", "script", "start_empty",
           "write_turns"]  # fmt: skip

_MIGRATIONS: Final = Path(__file__).parent.parent.parent / "migrations"

PROJECT: Final = "legal-agent"
ANSWER: Final = "Good day — what can I do for you?"

# The turns of session thread-1, by their index.
COMPLETED, FAILED, INTERRUPTED, LIVE, UNENDED, RETRIED = range(6)

_PINNED: Final = {
    "manifest": "e1edc392da8ab77c9e0c9734ef74ea006df19d00d46cb98ff0c14ac51bc993d3",  # of turn 0
    "input": "b31e4d00b684d1380865e28c4cedbea845b8e9d11539305ad2349b5db787eac2",
}
_HOLDER: Final = "agent-host-7:4242:k3j9x2ab:17"


def script(name: str) -> list[str]:
    """Return the statements of a migration."""
    return schema_statements((_MIGRATIONS / name).read_text("utf-8"))


def identity_of(turn_index: int, tenant_id: str = "acme") -> ChatTurnIdentity:
    """Return who a turn is for us."""
    return ChatTurnIdentity(tenant_id=tenant_id, session_id="thread-1", user_id="ann", turn_index=turn_index)


def legacy_id(turn_index: int) -> str:
    """Return what agent-runtime calls the turn's run."""
    return f"chat:thread-1:{turn_index}"


def manifest_of(turn_index: int, message: str = "hello") -> DurableRunManifest:
    """Return the turn's manifest."""
    return turn_manifest(identity_of(turn_index), project_id=PROJECT, domain="legal", user_message=message, model=None)


async def start_empty(database: Database) -> None:
    """Drop every table."""
    [found] = await database.batch(
        [
            Statement(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
                " AND name NOT LIKE 'sqlite%' AND name NOT LIKE '\\_cf%' ESCAPE '\\'"
            )
        ]
    )
    await database.batch([Statement(f"DROP TABLE {row['name']}") for row in found.rows])


async def make_version_1(database: Database) -> None:
    """Make the database that the version 1 script makes."""
    await start_empty(database)
    await database.batch([Statement(text) for text in script("0001_documents_v1.sql")])


async def write_turns(database: Database, clock: Clock) -> None:
    """Write one turn of each kind, an hour ago but for the leases of those that are alive."""
    writes: list[Statement] = []
    for turn_index in range(6):
        writes += _turn(turn_index, clock)
    await database.batch(writes)


def _turn(turn_index: int, clock: Clock) -> list[Statement]:
    begun, ended = clock.after(-3_600_000), clock.after(-3_590_000)
    expires = clock.after(60_000 if turn_index in {LIVE, RETRIED} else -3_540_000)
    over = turn_index in {COMPLETED, FAILED}
    status = {COMPLETED: "completed", FAILED: "failed", RETRIED: "failed"}.get(turn_index, "running")
    outcome = {"notes": f"chat:turn-{turn_index}", "metadata": {"chars": len(ANSWER)}}
    run: dict[str, Any] = {
        "run_id": legacy_id(turn_index),
        "manifest_hash": _PINNED["manifest"] if turn_index == COMPLETED else _manifest_hash(turn_index),
        "project_id": PROJECT,
        "scenario_id": "thread-1",
        "status": status,
        "created_at": begun,
        "updated_at": ended if over else begun,
        "completed_at": ended if status != "running" else None,
        "lease_holder_id": None if over else _HOLDER,
        "lease_expires_at": None if over else expires,
        "outcome_json": json.dumps(outcome) if status == "completed" else None,
        "step_count": 1,
    }
    answered = turn_index in {COMPLETED, UNENDED}
    step: dict[str, Any] = {
        "run_id": legacy_id(turn_index),
        "step_index": 0,
        "intent": f"chat:turn-{turn_index}",
        "kind": "llm",
        "input_hash": _PINNED["input"],
        "status": "completed" if answered else ("failed" if turn_index == FAILED else "running"),
        "attempts": 2 if turn_index == RETRIED else 1,
        "result_json": json.dumps({"finalText": ANSWER}, ensure_ascii=False) if answered else None,
        "error_json": json.dumps({"message": "fetch failed", "stack": "Error: fetch failed\n    at turn.js:1:1"})
        if turn_index == FAILED
        else None,
        "started_at": begun,
        "completed_at": ended if answered or turn_index == FAILED else None,
    }
    return [_insert("durable_runs", run), _insert("durable_steps", step)]


def _manifest_hash(turn_index: int) -> str:
    """Hash the six members as agent-runtime does, without the help of the code that is tested."""
    return canonical_hash(
        {
            "projectId": PROJECT,
            "scenarioId": "thread-1",
            "taskId": f"{PROJECT}:chat:thread-1:{turn_index}",
            "taskIntent": "Run a legal chat turn with workspace context.",
            "taskDomain": "legal",
            "input": {"userMessage": "hello", "model": None},
        }
    )


def _insert(table: str, row: dict[str, Any]) -> Statement:
    places = ", ".join(f"?{number}" for number in range(1, len(row) + 1))
    return Statement(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", tuple(row.values()))  # noqa: S608


async def rows_of(database: Database, *tables: str) -> list[list[dict[str, Any]]]:
    """Return every row of some tables."""
    outcomes = await database.batch([Statement(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables])  # noqa: S608
    return [[dict(row) for row in outcome.rows] for outcome in outcomes]
