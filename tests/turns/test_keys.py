"""Keys that leave the system: for models, tools and hooks.  Each names one thing for ever."""

from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.chat.hooks.hooks import FinishedTurn
from chatturn.database.sqlite import SqliteDatabase
from tests.support.isolates import Isolate
from tests.support.turns import open_sqlite
from tests.support.whole_turns import rows
from tests.turns.test_agent import Agent, Model

TABLES = ("durable_runs", "durable_steps", "chat_turns", "chat_segments", "chat_messages", "chat_outbox", "chat_usage")


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    with open_sqlite() as database:
        yield database


class Noting(Agent):
    """An agent whose product has a hook."""

    def __init__(self, keys: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.keys = keys

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        self.keys.append(turn.idempotency_key)


async def keys_of_a_turn(database: SqliteDatabase, threads: str) -> list[str]:
    """Run the turn and return the keys that were handed out."""
    keys: list[str] = []
    effects: dict[str, list[str]] = {}
    model = Model(("note", {"text": "x"}), "done")
    isolate = Isolate(database, Noting(keys, effects=effects), model.backend(), settings={"THREADS": threads})
    await (await isolate.post()).lines()
    return sorted({*keys, *effects, *(key for _, key in model.calls)})


async def forget(database: SqliteDatabase) -> None:
    for table in TABLES:
        await rows(database, f"DELETE FROM {table}")  # noqa: S608 - names of ours


async def test_a_turn_that_comes_back_after_retention_has_other_keys(database: SqliteDatabase) -> None:
    """Nobody takes its effects for those of the turn that was deleted."""
    first = await keys_of_a_turn(database, "on")
    await forget(database)
    second = await keys_of_a_turn(database, "on")

    assert 4 == len(first) == len(second)  # two model calls, a tool, a hook
    assert set(first).isdisjoint(second)


async def test_before_the_last_old_isolate_is_gone_keys_are_what_it_would_make_of_them(
    database: SqliteDatabase,
) -> None:
    """It may take over any turn."""
    first = await keys_of_a_turn(database, "off")
    await forget(database)

    assert first == await keys_of_a_turn(database, "off")
    assert "chat:acme:thread-1:0/1/on_turn_complete" in first


async def test_a_run_in_progress_over_the_upgrade_keeps_its_keys(database: SqliteDatabase) -> None:
    """It was made without a part of its own."""
    keys: list[str] = []
    model = Model(("send", {"text": "x"}), "done")
    old = Isolate(database, Noting(keys), model.backend(), settings={"THREADS": "off"})
    await (await old.post()).lines()
    await old.kill()
    new = Isolate(database, Noting(keys), model.backend(), settings={"THREADS": "on"})
    [(waits_for,)] = await rows(database, "SELECT event_key FROM durable_waits")
    reply = await new.ask(
        "POST", f"/v1/runs/chat%3Aacme%3Athread-1%3A0/events/{waits_for}", {"payload": {"approved": True}}
    )
    await (await new.post()).lines()

    assert (200, "approve:1.1.0") == (reply.status, waits_for)
    assert [(None,)] == await rows(database, "SELECT key_part FROM durable_runs")
    assert ["chat:acme:thread-1:0/2/on_turn_complete"] == keys
