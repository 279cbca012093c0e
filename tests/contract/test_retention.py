"""Retention: what ended long ago is deleted, with all that hangs on it, and nothing else is touched."""

import re
from typing import Any

import pytest

from chatturn.database.api import Database, Statement
from chatturn.durable.records import RunStatus, Wait
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.store import Begin
from tests.contract.test_listing import turn_of
from tests.support.clock import Clock
from tests.support.runs import LEASE_MS, STEP, claim, lease_of

DAY_MS = 86_400_000
TABLES = (
    "durable_runs", "durable_steps", "durable_events", "durable_waits",
    "chat_turns", "chat_segments", "chat_messages", "chat_outbox", "chat_usage",
)  # fmt: skip
MOMENT = "2026-01-01T00:00:00.000Z"


async def counts(database: Database) -> dict[str, int]:
    """Count every table's rows."""
    outcomes = await database.batch([Statement(f"SELECT count(*) AS n FROM {table}") for table in TABLES])  # noqa: S608
    return {table: int(outcome.rows[0]["n"] or 0) for table, outcome in zip(TABLES, outcomes, strict=True)}


async def a_whole_turn(store: SqlRunStore, turn_index: int, *, hook_status: str = "done") -> str:
    """Make a finished turn with a row in every table."""
    run_id = await turn_of(store, "acme", turn_index, begin=STEP, lease_ms=1)
    await store.emit_event(run_id, "k", 1)
    about = (run_id, turn_index, MOMENT, hook_status)
    hangs_on = [
        "INSERT INTO chat_segments VALUES (?1, 0, 1, 1, 'l', 1)",
        "INSERT INTO chat_messages VALUES ('acme', 'thread', ?2, 'user', 'hi', ?1, ?3, 1, 0)",
        "INSERT INTO chat_messages VALUES ('acme', 'thread', ?2, 'assistant', 'ho', ?1, ?3, 1, 0)",
        "INSERT INTO chat_outbox (run_id, hook, attempt, status, failures, next_call_at, last_error, created_at) VALUES (?1, 'on_turn_complete', 1, ?4, 0, ?3, NULL, ?3)",
        "INSERT INTO chat_usage (run_id, attempt, call_index, recorded_at) VALUES (?1, 1, 0, ?3)",
        "INSERT INTO durable_waits VALUES (?1, 0, 'k', ?3)",
        "UPDATE durable_runs SET status = 'completed', completed_at = updated_at WHERE run_id = ?1",
        "UPDATE durable_runs SET lease_holder_id = NULL WHERE run_id = ?1",
    ]
    writes = [Statement(text, about[: max(map(int, re.findall(r"\?(\d)", text)))]) for text in hangs_on]
    await store.database.batch(writes)
    return run_id


async def test_an_old_run_goes_with_all_that_hangs_on_it(store: SqlRunStore, clock: Clock, database: Database) -> None:
    """But what it has cost no table has a row of it any more; a younger run beside it keeps every row."""
    await a_whole_turn(store, 0)
    clock.advance(DAY_MS)
    await a_whole_turn(store, 1)
    one_run = {table: n if table == "chat_usage" else n // 2 for table, n in (await counts(database)).items()}
    clock.advance(1)

    assert 1 == await store.delete_finished_runs(older_than_ms=DAY_MS)
    assert one_run == await counts(database)
    assert 0 == await store.delete_finished_runs(older_than_ms=DAY_MS)


async def test_the_age_is_counted_from_the_end(store: SqlRunStore, clock: Clock) -> None:
    """Not from the creation, and to the millisecond."""
    lease = await lease_of(store, lease_ms=10 * DAY_MS)
    clock.advance(5 * DAY_MS)
    await store.end_run(lease, RunStatus.FAILED)
    clock.advance(DAY_MS)

    assert 0 == await store.delete_finished_runs(older_than_ms=DAY_MS)
    clock.advance(1)
    assert 1 == await store.delete_finished_runs(older_than_ms=DAY_MS)


async def test_what_is_not_over_is_never_deleted(store: SqlRunStore, clock: Clock, database: Database) -> None:
    """Running, dead without having ended, suspended, tried again: however old they are."""
    await lease_of(store, "dead", begin=STEP)
    wait = Wait(step_index=0, key="k", wake_at=clock.after(1))
    await store.suspend(await lease_of(store, "suspended"), wait)
    await store.end_run(await lease_of(store, "again"), RunStatus.FAILED)
    clock.advance(400 * DAY_MS)
    await lease_of(store, "again")
    await lease_of(store, "alive")
    # Whatever else its row says.
    await database.batch([Statement("UPDATE durable_runs SET completed_at = created_at WHERE run_id = 'dead'")])
    await database.batch([Statement("UPDATE durable_runs SET completed_at = created_at WHERE run_id = 'suspended'")])
    before = await counts(database)

    assert 0 == await store.delete_finished_runs(older_than_ms=0)
    assert before == await counts(database)


async def test_a_run_that_agent_runtime_tries_again_stays(store: SqlRunStore, clock: Clock, database: Database) -> None:
    """B8: theirs keeps status and completion while it runs again; its lease says that it is alive."""
    await store.end_run(await lease_of(store), RunStatus.FAILED)
    clock.advance(2 * DAY_MS)
    take = Statement(
        "UPDATE durable_runs SET lease_holder_id = 'host:1:x:1', lease_expires_at = ?1", (clock.after(LEASE_MS),)
    )
    await database.batch([take])

    assert 0 == await store.delete_finished_runs(older_than_ms=DAY_MS)
    clock.advance(LEASE_MS)
    assert 1 == await store.delete_finished_runs(older_than_ms=DAY_MS)


async def test_a_hook_call_that_must_still_happen_keeps_its_run(store: SqlRunStore, clock: Clock) -> None:
    """The answer that it is about is not taken from under it."""
    await a_whole_turn(store, 0, hook_status="pending")
    await a_whole_turn(store, 1, hook_status="given_up")
    clock.advance(DAY_MS)

    assert 1 == await store.delete_finished_runs(older_than_ms=1)


async def test_deletion_is_bounded_and_begins_with_the_oldest(store: SqlRunStore, clock: Clock) -> None:
    """A batch at a time, until nothing is left."""
    for number in range(5):
        await store.end_run(await lease_of(store, f"run-{number}"), RunStatus.COMPLETED)
        clock.advance(1)
    clock.advance(DAY_MS)

    assert 2 == await store.delete_finished_runs(older_than_ms=DAY_MS - 1000, limit=2)
    assert [None, None] == [await store.load_run("run-0"), await store.load_run("run-1")]
    assert await store.load_run("run-2") is not None
    assert [2, 1, 0] == [await store.delete_finished_runs(older_than_ms=1, limit=2) for _ in range(3)]


async def test_a_deleted_run_may_be_begun_again(store: SqlRunStore, clock: Clock) -> None:
    """It is a new one: no step of the old is left to confuse it."""
    lease = await lease_of(store, begin=STEP)
    await store.complete_step(lease, 0, "old")
    await store.end_run(lease, RunStatus.COMPLETED)
    clock.advance(2)
    await store.delete_finished_runs(older_than_ms=1)
    again = await claim(store, begin=Begin(step_index=0, intent="other", kind="logic"))

    assert again.lease is not None
    assert (1, []) == (again.run.epoch, list(again.completed_steps))


@pytest.mark.parametrize("wrong", [{"older_than_ms": -1}, {"older_than_ms": 1, "limit": 0}])
async def test_a_wrong_bound_deletes_nothing(store: SqlRunStore, wrong: dict[str, Any]) -> None:
    """Where SQL would take it for no bound at all."""
    with pytest.raises(ValueError, match="at least"):
        await store.delete_finished_runs(**wrong)
