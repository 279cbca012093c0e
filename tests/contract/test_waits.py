"""What a suspended run waits for: due by its event or its moment, and over when the run goes on."""

from collections.abc import Sequence

import pytest

from chatturn.chat.lists.sql import read_latest_turn, read_open_turns
from chatturn.database.api import Database, Statement
from chatturn.database.migration import migrate, missing_parts
from chatturn.durable.records import RunOutcome, Wait
from chatturn.durable.sql.runs import DUE_WAITS
from chatturn.durable.sql_store import SqlRunStore
from tests.contract.test_upgrade import LATER, apply, version_101
from tests.support.clock import Clock
from tests.support.runs import lease_of

LATE = "2099-01-01T00:00:00.000Z"
OF_ANY_VERSION = """
INSERT INTO durable_waits (run_id, step_index, event_key, wake_at) VALUES (?1, 0, 'yes', ?2)
ON CONFLICT (run_id) DO UPDATE SET
  step_index = excluded.step_index, event_key = excluded.event_key, wake_at = excluded.wake_at
"""
"""As workers of an earlier version write it."""


async def suspended(store: SqlRunStore, run_id: str = "run-1", key: str | None = "yes", wake_at: str = LATE) -> None:
    await store.suspend(await lease_of(store, run_id), Wait(step_index=0, key=key, wake_at=wake_at))


async def waits(database: Database) -> list[tuple[object, ...]]:
    [found] = await database.batch([Statement("SELECT run_id, event_key, wake_at FROM durable_waits ORDER BY run_id")])
    return [tuple(row.values()) for row in found.rows]


async def test_the_event_that_a_run_waits_for_makes_it_due_and_no_other_one(store: SqlRunStore, clock: Clock) -> None:
    await suspended(store, "run-1", "yes")
    await suspended(store, "run-2", "no")
    await suspended(store, "run-3", None)
    await store.emit_event("run-1", "other", 1)
    assert [] == list(await store.due_runs(10))
    clock.advance(1_000)
    await store.emit_event("run-1", "yes", 1)
    await store.emit_event("run-1", "yes", 2)

    assert ["run-1"] == list(await store.due_runs(10))
    clock.advance(1_000)
    await store.emit_event("run-2", "no", 1)
    assert ["run-1", "run-2"] == list(await store.due_runs(10))  # the longest due first
    assert ["run-1"] == list(await store.due_runs(1))


async def test_an_event_that_came_before_the_wait_was_on_record_makes_it_due(store: SqlRunStore, clock: Clock) -> None:
    """Between the last look of a task for its event and the write that suspends its run."""
    lease = await lease_of(store)
    await store.emit_event("run-1", "yes", 1)
    clock.advance(1_000)
    await store.suspend(lease, Wait(step_index=0, key="yes", wake_at=LATE))

    assert ["run-1"] == list(await store.due_runs(10))


async def test_a_moment_that_comes_before_the_event_stays(store: SqlRunStore, clock: Clock) -> None:
    moment = clock.after(500)
    await suspended(store, wake_at=moment)
    clock.advance(1_000)
    await store.emit_event("run-1", "yes", 1)

    assert [("run-1", "yes", moment)] == await waits(store.database)


async def test_a_wait_is_over_when_its_run_goes_on_or_is_given_up(store: SqlRunStore, clock: Clock) -> None:
    """What is read at each sweep has no rows of runs that wait no more; and a run may wait again."""
    await suspended(store)
    lease = await lease_of(store)
    assert [] == await waits(store.database)
    clock.advance(1_000)
    await store.suspend(lease, Wait(step_index=1, key="no", wake_at=LATE))
    assert [("run-1", "no", LATE)] == await waits(store.database)
    await store.give_up("run-1", RunOutcome(passed=False))

    assert [] == await waits(store.database)
    assert [] == list(await store.due_runs(10))


async def test_workers_of_an_earlier_version_make_runs_due_by_the_same_rules(
    store: SqlRunStore, database: Database
) -> None:
    """They write waits and events themselves, and nobody tells them of the triggers."""
    for run_id in ("run-1", "run-2"):
        await lease_of(store, run_id)
    event = Statement("INSERT OR IGNORE INTO durable_events VALUES (?1, 'yes', '1', '2026-01-01T00:00:00.000Z')")
    suspends = Statement("UPDATE durable_runs SET status = 'suspended', lease_holder_id = NULL WHERE run_id = ?1")

    def of(run_id: str, *statements: Statement) -> list[Statement]:
        return [Statement(each.sql, (run_id, *each.params)) for each in statements]

    wait = Statement(OF_ANY_VERSION, (LATE,))
    await database.batch(of("run-1", wait, suspends))
    await database.batch(of("run-1", event))
    await database.batch(of("run-2", event))
    await database.batch(of("run-2", wait, suspends))

    assert ["run-1", "run-2"] == sorted(await store.due_runs(10))
    await database.batch(of("run-1", Statement("UPDATE durable_runs SET status = 'running' WHERE run_id = ?1")))
    assert ["run-2"] == list(await store.due_runs(10))


@pytest.mark.parametrize("by_wrangler", [True, False])
async def test_waits_of_before_are_due_or_gone(database: Database, clock: Clock, *, by_wrangler: bool) -> None:
    """The migration makes due what an event has come for, and deletes what earlier waits have left."""
    await version_101(database, clock)
    await apply(database, "0004_logs.sql", *LATER[:-1])
    run = (
        "INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at)"
        " VALUES (?1, 'h', 'p', ?2, ?3, ?3)"
    )
    moment = clock.after(0)
    for run_id, status in {"came": "suspended", "waits": "suspended", "over": "completed", "runs": "running"}.items():
        await database.batch([Statement(run, (run_id, status, moment)), Statement(OF_ANY_VERSION, (run_id, LATE))])
    event = "INSERT INTO durable_events VALUES (?1, ?2, '1', ?3)"
    await database.batch([Statement(event, ("came", "yes", moment)), Statement(event, ("waits", "other", moment))])
    lacks = await missing_parts(database)
    await (apply(database, LATER[-1]) if by_wrangler else migrate(database))

    assert ["durable_waits_event_came", "durable_waits_event_was_there", "durable_waits_over"] == lacks
    assert [] == await missing_parts(database)
    assert [("came", "yes", moment), ("waits", "yes", LATE)] == await waits(database)
    assert ["came"] == list(await SqlRunStore(database).due_runs(10))


async def plan(database: Database, statement: Statement) -> Sequence[str]:
    [found] = await database.batch([Statement(f"EXPLAIN QUERY PLAN {statement.sql}", statement.params)])
    return [str(row["detail"]) for row in found.rows]


async def test_only_due_waits_are_read(database: Database, clock: Clock) -> None:
    details = await plan(database, Statement(DUE_WAITS, (clock.after(0), 10)))

    assert 1 == len(details)
    assert "idx_durable_waits_wake (wake_at<?)" in details[0]


async def test_of_failed_turns_the_latest_are_read(database: Database) -> None:
    """By the index of their numbers, whichever list asks; and never all turns of a session."""
    for statement in (read_open_turns("acme", "thread"), read_latest_turn("acme", "thread")):
        details = await plan(database, statement)
        [failed] = [detail for detail in details if "idx_durable_runs_failed_number" in detail]
        assert "(<expr>=? AND <expr><?)" in failed
        assert not any("chat_turns" in detail and "run_id>?" in detail for detail in details), details
        assert not any(detail.startswith("SCAN chat_") for detail in details), details
