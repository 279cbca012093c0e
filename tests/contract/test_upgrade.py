"""A database of agent-runtime, or an older one of ours: brought to the schema, and its turns taken over."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from chatturn.chat.thread.identity import turn_run_id
from chatturn.database.api import Database, Result, Statement
from chatturn.database.migration import mend, migrate, missing_parts, read_version
from chatturn.database.schema import DURABLE_SCHEMA_VERSION
from chatturn.durable.records import Claim, RunStatus, StepStatus
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.store import Begin, Guard, Settlement
from chatturn.errors import DurableRunInputMismatchError, DurableRunLeaseHeldError, LeaseLost, StoreUnavailable
from tests.support.agent_runtime_database import (
    ANSWER,
    COMPLETED,
    FAILED,
    INTERRUPTED,
    LIVE,
    RETRIED,
    UNENDED,
    identity_of,
    legacy_id,
    make_version_1,
    manifest_of,
    rows_of,
    script,
    start_empty,
    write_turns,
)
from tests.support.clock import Clock
from tests.support.faults import FaultyDatabase

INPUT_HASH = "b31e4d00b684d1380865e28c4cedbea845b8e9d11539305ad2349b5db787eac2"


async def structure(database: Database) -> list[tuple[Any, ...]]:
    """Describe every table and index of a database."""
    [found] = await database.batch(
        [
            Statement(
                "SELECT m.type, m.name, c.name AS part FROM sqlite_master AS m,"
                " (SELECT 'table' AS kind UNION ALL SELECT 'index') AS k, pragma_table_info(m.name) AS c"
                " WHERE m.type = k.kind AND m.name NOT LIKE 'sqlite%' AND m.name NOT LIKE '\\_cf%' ESCAPE '\\'"
                " ORDER BY 1, 2, 3"
            )
        ]
    )
    [indexes] = await database.batch(
        [Statement("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY 1")]
    )
    return [tuple(row.values()) for row in (*found.rows, *indexes.rows)]


async def apply(database: Database, *names: str, leaving_out: Sequence[str] = ()) -> None:
    """Apply numbered migrations, as `wrangler d1 migrations apply` does; of the columns some may be left out."""
    left_out = [f"ADD COLUMN {column} " for column in leaving_out]
    for name in names:
        texts = [text for text in script(name) if not any(each in text for each in left_out)]
        await database.batch(list(map(Statement, texts)))


async def version_1(database: Database, clock: Clock) -> None:
    """agent-runtime's own, with turns."""
    await make_version_1(database)
    await write_turns(database, clock)


async def version_2(database: Database, clock: Clock) -> None:
    """Their next one: a column and a table more."""
    await version_1(database, clock)
    await database.batch(
        [
            Statement("ALTER TABLE durable_runs ADD COLUMN handle_json TEXT"),
            Statement(
                "CREATE TABLE durable_stream_events (run_id TEXT, seq INTEGER, event_id TEXT NOT NULL,"
                " payload_json TEXT, appended_at TEXT NOT NULL, PRIMARY KEY (run_id, seq))"
            ),
            Statement("INSERT INTO durable_schema_info VALUES (2, '2026-01-01T00:00:00.000Z')"),
        ]
    )


async def version_100(database: Database, clock: Clock) -> None:
    """Ours, from before there were waits and lists."""
    await version_1(database, clock)
    await apply(database, "0002_chatturn.sql")
    await database.batch([Statement("DROP TABLE durable_waits")])


async def half_way(database: Database, clock: Clock) -> None:
    """Theirs, with our schema applied over it: everything new, but the epoch is missing."""
    await version_100(database, clock)
    await database.batch(
        [
            Statement("ALTER TABLE durable_runs DROP COLUMN epoch"),
            Statement("DELETE FROM durable_schema_info WHERE version = 100"),
        ]
    )


async def nothing(database: Database, clock: Clock) -> None:
    """A database without a table."""
    del clock
    await start_empty(database)


async def version_101(database: Database, clock: Clock) -> None:
    """Ours, from when a log was stored at its end only."""
    await version_1(database, clock)
    await apply(database, "0002_chatturn.sql", "0003_lists_and_retention.sql")


async def version_102(database: Database, clock: Clock) -> None:
    """Ours, from when usage was of answers only, and nobody's."""
    await version_101(database, clock)
    await apply(database, "0004_logs.sql")


async def early_0004(database: Database, clock: Clock) -> None:
    """Ours, whose fourth migration was applied when it had another text; the later ones came on top of it."""
    await version_101(database, clock)
    await database.batch([Statement(text) for text in EARLY_0004])
    await apply(database, *LATER)


LATER = (
    "0005_ledger.sql",
    "0006_own_history.sql",
    "0007_compact_logs.sql",
    "0008_runtime_sessions.sql",
    "0009_attempts_and_keys.sql",
    "0010_parameters.sql",
    "0011_sessions.sql",
    "0012_versions.sql",
    "0013_queue.sql",
    "0014_parts.sql",
    "0015_client_tools.sql",
    "0016_ledger_sums.sql",
    "0017_peoples_data.sql",
    "0018_thread_changes.sql",
    "0019_old_logs.sql",
    "0020_failed_runs.sql",
    "0021_moved_messages.sql",
    "0022_due_waits.sql",
)
EARLY_0004 = (
    "ALTER TABLE chat_turns ADD COLUMN log_from INTEGER NOT NULL DEFAULT 0 CHECK (log_from >= 0)",
    "ALTER TABLE chat_turns ADD COLUMN suspensions INTEGER NOT NULL DEFAULT 0 CHECK (suspensions >= 0)",
    "ALTER TABLE chat_turns ADD COLUMN cancelled_at TEXT CHECK (length(cancelled_at) = 24)",
    "ALTER TABLE chat_turns ADD COLUMN followed_at TEXT CHECK (length(followed_at) = 24)",
    "ALTER TABLE chat_segments ADD COLUMN ended INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1))",
    "CREATE INDEX IF NOT EXISTS idx_chat_outbox_given_up ON chat_outbox (next_call_at) WHERE status = 'given_up'",
    "INSERT OR IGNORE INTO durable_schema_info VALUES (102, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
)

_ALL = (nothing, version_1, version_2, half_way, version_100, version_101, version_102)
STARTS = {start.__name__: start for start in _ALL}


@pytest.mark.parametrize("start", STARTS)
async def test_every_database_ends_in_the_schema(database: Database, clock: Clock, start: str) -> None:
    """Wherever it begins, it has every table, column and index in the end, and says so."""
    expected = await structure(database)
    await STARTS[start](database, clock)

    assert DURABLE_SCHEMA_VERSION == await migrate(database)
    assert set(expected) <= set(await structure(database))


@pytest.mark.parametrize("start", STARTS)
async def test_migrating_again_changes_nothing(database: Database, clock: Clock, start: str) -> None:
    """It is read, once."""
    await STARTS[start](database, clock)
    await migrate(database)
    before = await rows_of(database, "durable_runs", "durable_steps", "durable_schema_info")
    counted = FaultyDatabase(database)

    assert DURABLE_SCHEMA_VERSION == await migrate(counted)
    assert before == await rows_of(database, "durable_runs", "durable_steps", "durable_schema_info")
    assert counted.batches <= 2


async def test_the_numbered_migrations_end_there_too(database: Database, clock: Clock) -> None:
    """What wrangler applies and what the code applies is the same."""
    expected = await structure(database)
    await version_1(database, clock)
    await apply(database, "0002_chatturn.sql", "0003_lists_and_retention.sql", "0004_logs.sql", *LATER)

    assert expected == await structure(database)
    assert DURABLE_SCHEMA_VERSION == await read_version(database)


async def test_every_row_of_agent_runtime_stays_as_it_is(database: Database, clock: Clock) -> None:
    """Column by column; what is new has its default."""
    await version_1(database, clock)
    runs, steps = await rows_of(database, "durable_runs", "durable_steps")
    await migrate(database)

    added = {"epoch": 0, "idle_attempts": 0, "attempts": 0, "key_part": None}
    assert [{**run, **added} for run in runs] == (await rows_of(database, "durable_runs"))[0]
    assert [steps] == await rows_of(database, "durable_steps")
    assert len(runs) == 6


async def test_usage_of_before_is_whose_turn_it_was(database: Database, clock: Clock) -> None:
    """Rows from before the ledger get their tenant and session, if the turn is still there, and what they had stays."""
    await version_102(database, clock)
    turn = (
        "INSERT INTO chat_turns (run_id, tenant_id, session_id, user_id, turn_index, user_message, attempt,"
        " created_at, updated_at) VALUES ('r', 'acme', 'thread', 'ann', 0, 'hi', 1, ?1, ?1)"
    )
    usage = (
        "INSERT INTO chat_usage (run_id, attempt, call_index, tokens_out, recorded_at)"
        " VALUES ('r', 1, 0, 7, ?1), ('gone', 1, 0, 8, ?1)"
    )
    await database.batch([Statement(text, ("2026-01-01T00:00:00.000Z",)) for text in (turn, usage)])
    await migrate(database)
    [rows] = await rows_of(database, "chat_usage")
    told = ("run_id", "tenant_id", "session_id", "tokens_out", "outcome", "wasted", "cost_micro_usd")

    assert [("gone", "", "", 8, "completed", 0, None), ("r", "acme", "thread", 7, "completed", 0, None)] == sorted(
        tuple(row[name] for name in told) for row in rows
    )


async def test_a_newer_schema_is_left_alone(database: Database) -> None:
    """Code that was rolled back does not touch what the later version made."""
    await database.batch([Statement("INSERT INTO durable_schema_info VALUES (999, '2026-01-01T00:00:00.000Z')")])

    assert 999 == await migrate(database)


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("batch", range(4))
async def test_a_lost_reply_does_no_harm(database: Database, clock: Clock, fault: Any, batch: int) -> None:
    """Applied or not: run again, it ends in the schema."""
    await version_1(database, clock)
    faulty = FaultyDatabase(database)
    faulty.faults = {batch: fault}
    try:
        await migrate(faulty)
    except StoreUnavailable:
        await migrate(faulty)

    assert DURABLE_SCHEMA_VERSION == await read_version(database)
    assert 6 == len((await rows_of(database, "durable_runs"))[0])


class Overtaken:
    """A database that somebody else migrates before the batch of that number."""

    def __init__(self, database: Database, batch: int) -> None:
        self._database = database
        self._left = batch

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements*, perhaps after the other's migration."""
        self._left -= 1
        if self._left == -1:
            await migrate(self._database)
        return await self._database.batch(statements)


@pytest.mark.parametrize("batch", range(4))
async def test_two_migrations_at_once_end_in_one_schema(database: Database, clock: Clock, batch: int) -> None:
    """The second finds the column there, looks again and is done."""
    await version_1(database, clock)

    assert DURABLE_SCHEMA_VERSION == await migrate(Overtaken(database, batch))
    assert 6 == len((await rows_of(database, "durable_runs"))[0])


# Turns of agent-runtime under ids of ours


async def migrated(store: SqlRunStore, clock: Clock) -> SqlRunStore:
    """Make the store's database one of theirs, migrated."""
    await version_1(store.database, clock)
    await migrate(store.database)
    return store


async def claim_turn(store: SqlRunStore, turn_index: int, **options: Any) -> Claim:
    """Claim a turn as the chat engine does."""
    begin = Begin(step_index=0, intent=f"chat:turn-{turn_index}", kind="llm", input_hash=INPUT_HASH)
    defaults: dict[str, Any] = {
        "legacy_run_id": legacy_id(turn_index),
        "manifest": manifest_of(turn_index),
        "begin": begin,
    }
    return await store.start_or_resume(
        run_id=turn_run_id(identity_of(turn_index)),
        worker_id="worker-1",
        lease_ms=30_000,
        **{**defaults, **options},
    )


async def test_a_finished_turn_of_theirs_is_returned_as_it_is(
    store: SqlRunStore, clock: Clock, database: Database
) -> None:
    """The pinned digest is the same turn's; nothing is written, and the answer is there."""
    legacy = await migrated(store, clock)
    tables = ("durable_runs", "durable_steps", "durable_events")
    before = await rows_of(database, *tables)
    claimed = await claim_turn(legacy, COMPLETED)

    assert claimed.lease is None
    assert [{"finalText": ANSWER}] == [step.result for step in claimed.completed_steps]
    assert (legacy_id(COMPLETED), RunStatus.COMPLETED) == (claimed.run.run_id, claimed.run.status)
    assert before == await rows_of(database, *tables)


async def test_without_its_legacy_id_no_turn_of_theirs_is_found(store: SqlRunStore, clock: Clock) -> None:
    """Tenants cannot meet unless the operator says that there is only one."""
    legacy = await migrated(store, clock)
    claimed = await claim_turn(legacy, COMPLETED, legacy_run_id=None)

    assert claimed.lease is not None
    assert [] == list(claimed.completed_steps)


@pytest.mark.parametrize("turn_index", [FAILED, INTERRUPTED])
async def test_an_unfinished_turn_of_theirs_becomes_ours(store: SqlRunStore, clock: Clock, turn_index: int) -> None:
    """Under our id, with its step and its attempts; theirs is gone."""
    legacy = await migrated(store, clock)
    claimed = await claim_turn(legacy, turn_index)
    [step] = claimed.steps

    assert claimed.lease is not None
    assert (turn_run_id(identity_of(turn_index)), 1) == (claimed.run.run_id, claimed.run.epoch)
    assert (RunStatus.RUNNING, StepStatus.RUNNING, 2) == (claimed.run.status, step.status, step.attempts)
    assert [None, None] == [
        await legacy.load_run(legacy_id(turn_index)), await legacy.load_step(legacy_id(turn_index), 0)
    ]  # fmt: skip
    ended = await legacy.settle(claimed.lease, Settlement(step_index=0, result={"finalText": "ours"}))
    assert RunStatus.COMPLETED is ended.status


@pytest.mark.parametrize("turn_index", [LIVE, RETRIED])
async def test_a_lease_of_theirs_is_respected(store: SqlRunStore, clock: Clock, turn_index: int) -> None:
    """While it is live nothing of theirs is touched, and nothing of ours is made; then the turn is taken over."""
    legacy = await migrated(store, clock)
    before = await rows_of(legacy.database, "durable_runs", "durable_steps")
    with pytest.raises(DurableRunLeaseHeldError) as held:
        await claim_turn(legacy, turn_index)
    after = await rows_of(legacy.database, "durable_runs", "durable_steps")
    clock.advance(60_000)

    assert before == after
    assert pytest.approx(60_000, abs=2) == held.value.retry_after_ms
    assert (await claim_turn(legacy, turn_index)).lease is not None


@pytest.mark.parametrize("supersede", [False, True])
async def test_an_answer_that_their_worker_did_not_live_to_end_is_kept(
    store: SqlRunStore, clock: Clock, supersede: bool
) -> None:
    """Their step was stored and their run was not: the answer is paid for."""
    legacy = await migrated(store, clock)
    claimed = await claim_turn(legacy, UNENDED, supersede=supersede)

    assert claimed.lease is not None
    assert [{"finalText": ANSWER}] == [step.result for step in claimed.completed_steps]


async def test_another_message_to_a_finished_turn_of_theirs_is_refused(store: SqlRunStore, clock: Clock) -> None:
    """As to one of ours; and one that supersedes it is a run of ours beside theirs, which stays."""
    legacy = await migrated(store, clock)
    theirs = await legacy.load_run(legacy_id(COMPLETED))
    other = manifest_of(COMPLETED, "something else")
    with pytest.raises(DurableRunInputMismatchError):
        await claim_turn(legacy, COMPLETED, manifest=other)
    refused = await legacy.load_run(turn_run_id(identity_of(COMPLETED)))
    claimed = await claim_turn(legacy, COMPLETED, manifest=other, supersede=True)

    assert refused is None
    assert claimed.lease is not None
    assert theirs == await legacy.load_run(legacy_id(COMPLETED))


@pytest.mark.parametrize("turn_index", [FAILED, INTERRUPTED])
async def test_another_turn_under_their_id_is_not_this_one(store: SqlRunStore, clock: Clock, turn_index: int) -> None:
    """Another message, or another product: a new run, and theirs stays."""
    legacy = await migrated(store, clock)
    theirs = await legacy.load_run(legacy_id(turn_index))
    claimed = await claim_turn(legacy, turn_index, manifest=manifest_of(turn_index, "something else"))

    assert claimed.lease is not None
    assert [] == list(claimed.completed_steps)
    assert theirs is not None
    assert theirs == await legacy.load_run(legacy_id(turn_index))


@pytest.mark.parametrize("supersede", [False, True])
async def test_another_message_waits_for_a_lease_of_theirs(
    store: SqlRunStore, clock: Clock, *, supersede: bool
) -> None:
    """As for a lease of ours: what is being answered is not answered beside it.  Another project's is nothing to it."""
    legacy = await migrated(store, clock)
    before = await rows_of(legacy.database, "durable_runs", "durable_steps")
    other = manifest_of(LIVE, "something else")
    with pytest.raises(DurableRunLeaseHeldError if supersede else DurableRunInputMismatchError):
        await claim_turn(legacy, LIVE, manifest=other, supersede=supersede)

    assert before == await rows_of(legacy.database, "durable_runs", "durable_steps")
    assert (await claim_turn(legacy, LIVE, manifest=replace(other, project_id="another"))).lease is not None


@pytest.mark.parametrize("turn_index", range(7))
@pytest.mark.parametrize("supersede", [False, True])
async def test_a_guard_holds_up_the_claim_of_a_turn_of_theirs(
    store: SqlRunStore, clock: Clock, turn_index: int, *, supersede: bool
) -> None:
    """Whatever there is, or is not, under their id: nothing is written."""
    legacy = await migrated(store, clock)
    before = await rows_of(legacy.database, "durable_runs", "durable_steps")
    guard = Guard(sql="{0} = 2", params=(1,), refusal=lambda _row: LookupError("no"))
    with pytest.raises(LookupError):
        await claim_turn(legacy, turn_index, guards=[guard], supersede=supersede)

    assert before == await rows_of(legacy.database, "durable_runs", "durable_steps")


async def test_a_worker_of_theirs_that_wakes_up_late_changes_nothing(
    store: SqlRunStore, clock: Clock, database: Database
) -> None:
    """B2: its writes name the run only; the run has another name by now."""
    legacy = await migrated(store, clock)
    claimed = await claim_turn(legacy, INTERRUPTED)
    assert claimed.lease is not None
    before = await rows_of(database, "durable_runs", "durable_steps")
    theirs = (legacy_id(INTERRUPTED),)
    outcomes = await database.batch(
        [
            Statement("UPDATE durable_steps SET status = 'completed', result_json = '\"z\"' WHERE run_id = ?1", theirs),
            Statement("UPDATE durable_steps SET status = 'failed', error_json = '{}' WHERE run_id = ?1", theirs),
            Statement("UPDATE durable_runs SET status = 'failed', lease_holder_id = NULL WHERE run_id = ?1", theirs),
            Statement("UPDATE durable_runs SET lease_expires_at = '2030' WHERE run_id = ?1", theirs),
        ]
    )

    assert [0, 0, 0, 0] == [outcome.changes for outcome in outcomes]
    assert before == await rows_of(database, "durable_runs", "durable_steps")


async def test_what_their_engine_begins_anew_is_left_to_it(store: SqlRunStore, clock: Clock) -> None:
    """A turn that is ours stays ours, also when theirs makes a run, or a step without one, under the old id."""
    legacy = await migrated(store, clock)
    await claim_turn(legacy, INTERRUPTED)
    insert = (
        "INSERT INTO durable_steps (run_id, step_index, intent, kind, status) VALUES (?1, 0, 'turn', 'llm', 'running')"
    )
    await legacy.database.batch([Statement(insert, (legacy_id(INTERRUPTED),))])
    clock.advance(30_000)
    second = await claim_turn(legacy, INTERRUPTED)
    theirs = (
        "INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at,"
        " lease_holder_id, lease_expires_at) SELECT ?1, manifest_hash, project_id, 'running', created_at,"
        " updated_at, 'host:1:x:1', updated_at FROM durable_runs WHERE run_id = ?2"
    )
    await legacy.database.batch([Statement(theirs, (legacy_id(INTERRUPTED), second.run.run_id))])
    clock.advance(30_000)
    third = await claim_turn(legacy, INTERRUPTED)

    assert [2, 3] == [second.run.epoch, third.run.epoch]
    assert [["chat:turn-2"], ["chat:turn-2"]] == [[step.intent for step in each.steps] for each in (second, third)]


async def test_two_workers_of_ours_take_one_turn_of_theirs_over_once(store: SqlRunStore, clock: Clock) -> None:
    """The second finds it claimed, like any run."""
    legacy = await migrated(store, clock)
    first = await claim_turn(legacy, INTERRUPTED)

    with pytest.raises(DurableRunLeaseHeldError):
        await claim_turn(legacy, INTERRUPTED)
    assert first.lease is not None
    assert await legacy.renew_lease(first.lease)


@pytest.mark.parametrize("turn_index", [COMPLETED, INTERRUPTED])
@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_takeover_whose_reply_is_lost_is_recognised(
    store: SqlRunStore, database: Database, clock: Clock, turn_index: int, fault: Any
) -> None:
    """The claim tried again is the same one."""
    await migrated(store, clock)
    faulty = FaultyDatabase(database)
    faulty.faults = {0: fault}
    claimed = await claim_turn(SqlRunStore(faulty), turn_index)

    assert (turn_index == COMPLETED) == (claimed.lease is None)
    assert int(turn_index != COMPLETED) == claimed.run.epoch


async def test_events_of_theirs_come_along(store: SqlRunStore, clock: Clock) -> None:
    """What was emitted for the run is found under its new id."""
    legacy = await migrated(store, clock)
    await legacy.emit_event(legacy_id(FAILED), "approved", {"by": "ann"})
    claimed = await claim_turn(legacy, FAILED)
    event = await legacy.load_event(claimed.run.run_id, "approved")

    assert event is not None
    assert {"by": "ann"} == event.payload


async def test_a_taken_over_turn_is_fenced_like_any(store: SqlRunStore, clock: Clock) -> None:
    """From then on epoch and holder decide."""
    legacy = await migrated(store, clock)
    stale = (await claim_turn(legacy, INTERRUPTED)).lease
    assert stale is not None
    clock.advance(30_000)
    await claim_turn(legacy, INTERRUPTED)

    with pytest.raises(LeaseLost):
        await legacy.settle(stale, Settlement(step_index=0, result={"finalText": "late"}))


async def test_a_run_that_was_claimed_under_its_old_id_by_us_comes_along(store: SqlRunStore, clock: Clock) -> None:
    """Its epoch goes on."""
    legacy = await migrated(store, clock)
    old = await legacy.start_or_resume(run_id=legacy_id(FAILED), manifest=manifest_of(FAILED), worker_id="tool")
    assert old.lease is not None
    await legacy.end_run(old.lease, RunStatus.FAILED)
    claimed = await claim_turn(legacy, FAILED)

    assert (turn_run_id(identity_of(FAILED)), 2) == (claimed.run.run_id, claimed.run.epoch)


async def test_a_superseded_turn_takes_nothing_that_a_late_worker_of_theirs_left(
    store: SqlRunStore, clock: Clock
) -> None:
    """A step under the old id, without a run, is nobody's answer."""
    legacy = await migrated(store, clock)
    await claim_turn(legacy, INTERRUPTED)
    left = (
        "INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, result_json)"
        " VALUES (?1, 0, 'chat:turn-2', 'llm', ?2, 'completed', '{\"finalText\": \"late\"}')"
    )
    await legacy.database.batch([Statement(left, (legacy_id(INTERRUPTED), INPUT_HASH))])
    clock.advance(30_000)
    other = manifest_of(INTERRUPTED, "something else")
    begin = Begin(step_index=0, intent="chat:turn-2", kind="llm", input_hash="other")
    claimed = await claim_turn(legacy, INTERRUPTED, manifest=other, begin=begin, supersede=True)

    assert claimed.lease is not None
    assert [] == list(claimed.completed_steps)


async def test_a_database_of_an_earlier_text_of_a_migration_is_recognised_and_mended(
    database: Database, clock: Clock
) -> None:
    """Its number says that it has everything; what it lacks is seen, added, and filled."""
    await early_0004(database, clock)
    turn = "INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at, epoch) VALUES"
    await database.batch(
        [
            Statement(f"{turn} ('old', 'hash', 'p', 'failed', '{MOMENT}', '{MOMENT}', 1)"),
            Statement(
                "INSERT INTO chat_turns (run_id, tenant_id, session_id, user_id, turn_index, user_message, attempt,"  # noqa: S608 - ours
                f" created_at, updated_at) VALUES ('old', 't', 's', 'u', 0, 'hi', 1, '{MOMENT}', '{MOMENT}')"
            ),
            Statement("INSERT INTO chat_segments VALUES ('old', 0, 0, 1, ?1, 0)", (f'{{"type":"{ENDED}","seq":0}}\n',)),
            Statement("INSERT INTO chat_segments VALUES ('live', 0, 0, 1, '{}', 0)"),
        ]
    )
    lacks = await missing_parts(database)
    mended = [await mend(database), await mend(database)]
    [turns, segments] = await database.batch(
        [
            Statement("SELECT manifest_hash, first_attempt, followed_until FROM chat_turns WHERE run_id = 'old'"),
            Statement("SELECT run_id, ended FROM chat_segments WHERE run_id IN ('old', 'live') ORDER BY run_id"),
        ]
    )

    assert ["chat_turns.followed_until", "chat_turns.first_attempt", "chat_turns.manifest_hash"] == lacks
    assert DURABLE_SCHEMA_VERSION == await read_version(database)
    assert ([True, False], []) == (mended, await missing_parts(database))
    assert [{"manifest_hash": "hash", "first_attempt": 1, "followed_until": None}] == [dict(row) for row in turns.rows]
    assert [("live", 0), ("old", 1)] == [(row["run_id"], row["ended"]) for row in segments.rows]


@pytest.mark.parametrize(
    "lost",
    [("traceparent", "caller_span_id", "traced_by"), ("finish_reason", "retry_at")],
    ids=["0005_ledger.sql", "0011_sessions.sql"],
)
async def test_a_database_of_an_earlier_text_that_lacked_columns_only_gets_them(
    database: Database, clock: Clock, lost: Sequence[str]
) -> None:
    """The fifth and the eleventh migration had such a text; nothing is known that the columns should hold."""
    await version_101(database, clock)
    await apply(database, "0004_logs.sql", *LATER, leaving_out=lost)
    lacks = await missing_parts(database)
    mended = [await mend(database), await mend(database)]

    assert {f"chat_turns.{column}" for column in lost} == set(lacks)
    assert ([True, False], []) == (mended, await missing_parts(database))


MOMENT = "2026-01-01T00:00:00.000Z"
ENDED = "session.run.failed"


@pytest.mark.parametrize("start", STARTS)
async def test_what_a_turn_needs_is_what_the_schema_has(database: Database, clock: Clock, start: str) -> None:
    """It is looked for by name, and nothing is missing after the migration."""
    await STARTS[start](database, clock)
    before = await missing_parts(database)
    await migrate(database)

    assert before
    assert [] == await missing_parts(database)
