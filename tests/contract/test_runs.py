"""Runs and leases: nobody writes a run that is not theirs (B1 to B10 in docs/reference/agent-runtime.md)."""

import re
from contextlib import suppress

import pytest

from chatturn.database.api import Database, Statement
from chatturn.database.schema import DURABLE_SCHEMA_VERSION
from chatturn.durable.records import Lease, RunOutcome, RunStatus, StepError, StepStatus, Wait
from chatturn.durable.sql.runs import HELD
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.store import Condition, Guard, Queue, Queued, Settlement
from chatturn.errors import (
    DurableRunDivergenceError,
    DurableRunInputMismatchError,
    DurableRunLeaseHeldError,
    LeaseLost,
    NotFound,
)
from tests.support.clock import Clock
from tests.support.runs import LEASE_MS, STEP, claim, lease_of, manifest

NEVER = Guard(sql="false", params=(), refusal=lambda _row: NotFound("never"))
NOTE = "INSERT INTO durable_events (run_id, key, payload_json, emitted_at) SELECT ?1, ?4, '1', 'now' WHERE " + HELD


async def rows(database: Database, sql: str) -> list[tuple[object, ...]]:
    """Read rows as tuples."""
    [outcome] = await database.batch([Statement(sql)])
    return [tuple(row.values()) for row in outcome.rows]


async def test_first_claim_creates_a_running_run_under_a_lease(store: SqlRunStore, clock: Clock) -> None:
    """A claimed run is running, its lease ends one term from now, its epoch is 1."""
    claimed = await claim(store)

    assert (RunStatus.RUNNING, 1, clock.moment()) == (claimed.run.status, claimed.run.epoch, claimed.run.created_at)
    assert claimed.lease is not None
    assert clock.after(LEASE_MS) == claimed.lease.expires_at


async def test_b1_a_lapsed_lease_cannot_be_renewed(store: SqlRunStore, clock: Clock) -> None:
    """Renewing is refused from the moment at which anybody else may claim."""
    lease = await lease_of(store)
    clock.advance(LEASE_MS)

    with pytest.raises(LeaseLost):
        await store.renew_lease(lease)


async def test_b1_a_stranger_cannot_renew(store: SqlRunStore) -> None:
    """A lease that was never granted renews nothing, and the owner's stays as it was."""
    lease = await lease_of(store)
    forged = Lease(run_id="run-1", holder="stranger", epoch=lease.epoch, expires_at=lease.expires_at, lease_ms=9)

    with pytest.raises(LeaseLost):
        await store.renew_lease(forged)
    run = await store.load_run("run-1")
    assert run is not None
    assert lease.expires_at == run.lease_expires_at


async def test_b1_a_zombie_cannot_renew_after_the_run_ended(store: SqlRunStore) -> None:
    """An ended run has no lease, and no renewal plants one."""
    lease = await lease_of(store)
    await store.end_run(lease, RunStatus.FAILED)

    with pytest.raises(LeaseLost):
        await store.renew_lease(lease)
    run = await store.load_run("run-1")
    assert run is not None
    assert run.lease_expires_at is None


async def test_renewal_extends_by_a_full_term_from_now(store: SqlRunStore, clock: Clock) -> None:
    """A renewed lease ends one term after its renewal."""
    lease = await lease_of(store)
    clock.advance(LEASE_MS - 1)
    renewed = await store.renew_lease(lease)

    assert clock.after(LEASE_MS) == renewed.expires_at


async def test_b2_a_worker_that_was_taken_over_changes_nothing(
    store: SqlRunStore, clock: Clock, database: Database
) -> None:
    """Every write of a stale lease is refused, and leaves every row as it was."""
    stale = await lease_of(store, begin=STEP)
    clock.advance(LEASE_MS)
    await lease_of(store, worker_id="worker-2", begin=STEP)
    tables = ("durable_runs", "durable_steps", "durable_events")
    before = [await rows(database, f"SELECT * FROM {table}") for table in tables]  # noqa: S608 - names of ours

    for write in (
        store.begin_step(stale, STEP),
        store.complete_step(stale, 0, "stale"),
        store.fail_step(stale, 0, StepError(message="stale")),
        store.end_run(stale, RunStatus.FAILED),
        store.settle(stale, Settlement(step_index=0, result="stale", with_statements=[Statement(NOTE, ("k",))])),
        store.renew_lease(stale),
    ):
        with pytest.raises(LeaseLost):
            await write

    after = [await rows(database, f"SELECT * FROM {table}") for table in tables]  # noqa: S608 - names of ours
    assert before == after


async def test_b3_the_loser_of_a_first_claim_gets_lease_held(store: SqlRunStore) -> None:
    """Two first callers: one claims, the other hears that the turn is in flight, never a SQL error."""
    await lease_of(store, worker_id="worker-1")

    with pytest.raises(DurableRunLeaseHeldError) as held:
        await claim(store, worker_id="worker-2")
    assert LEASE_MS == pytest.approx(held.value.retry_after_ms, abs=2)


async def test_b4_the_claim_returns_the_run_as_it_is_after_the_claim(store: SqlRunStore, clock: Clock) -> None:
    """The record of a takeover is the row that the takeover wrote, not the one before."""
    await lease_of(store, begin=STEP)
    clock.advance(LEASE_MS)
    claimed = await claim(store, worker_id="worker-2")

    assert await store.load_run("run-1") == claimed.run
    assert (2, 1, clock.moment()) == (claimed.run.epoch, claimed.run.step_count, claimed.run.updated_at)


async def test_b5_a_claim_and_its_step_are_one_write(store: SqlRunStore, database: Database) -> None:
    """A claim whose companion fails leaves no run, no step and no lease behind."""
    broken = Statement("INSERT INTO durable_events (run_id, key, emitted_at) VALUES (?1 || ?2 || ?3, NULL, NULL)")

    with pytest.raises(Exception, match=r"NULL|NOT NULL|constraint"):
        await claim(store, begin=STEP, with_statements=[broken])

    assert [(0,)] == await rows(database, "SELECT count(*) FROM durable_runs")
    assert [(0,)] == await rows(database, "SELECT count(*) FROM durable_steps")


async def test_b5_a_finish_is_one_write(store: SqlRunStore, database: Database) -> None:
    """Step, run and what is written with them end together, and the lease is released with them."""
    lease = await lease_of(store, begin=STEP)
    record = await store.settle(
        lease,
        Settlement(
            step_index=0,
            result={"finalText": "hi"},
            outcome=RunOutcome(notes="n"),
            with_statements=[Statement(NOTE, ("k",))],
        ),
    )
    step = await store.load_step("run-1", 0)

    assert (RunStatus.COMPLETED, None, RunOutcome(notes="n")) == (record.status, record.lease_holder_id, record.outcome)
    assert step is not None
    assert (StepStatus.COMPLETED, {"finalText": "hi"}) == (step.status, step.result)
    assert [("k",)] == await rows(database, "SELECT key FROM durable_events")


async def test_b5_a_finish_whose_companion_fails_leaves_the_run_as_it_was(store: SqlRunStore) -> None:
    """All or none: the lease is still held and the step still runs."""
    lease = await lease_of(store, begin=STEP)
    broken = Statement("INSERT INTO durable_events (run_id, key, emitted_at) VALUES (?1 || ?2 || ?3, NULL, NULL)")
    with pytest.raises(Exception, match=r"NULL|NOT NULL|constraint"):
        await store.settle(lease, Settlement(step_index=0, result="x", with_statements=[broken]))
    run, step = await store.load_run("run-1"), await store.load_step("run-1", 0)

    assert run is not None
    assert step is not None
    assert (RunStatus.RUNNING, lease.holder, StepStatus.RUNNING) == (run.status, run.lease_holder_id, step.status)


async def test_b6_leases_go_by_the_databases_own_clock(database_by_its_own_clock: Database) -> None:
    """The database says what now is, so skewed workers agree."""
    lease = await lease_of(SqlRunStore(database_by_its_own_clock), lease_ms=60_000)
    [outcome] = await database_by_its_own_clock.batch(
        [
            Statement(
                "SELECT (julianday(?1) - julianday('now')) * 86400 AS left_s, strftime('%Y-%m-%dT%H:%M:%fZ', ?1) AS text",
                (lease.expires_at,),
            )
        ]
    )
    row = outcome.rows[0]

    assert 50 < float(row["left_s"] or 0) <= 60.1
    assert lease.expires_at == row["text"]


async def test_a_lease_for_ever_is_a_lease(store: SqlRunStore) -> None:
    """Its end would be no date, and what has no end is free."""
    lease = await lease_of(store, lease_ms=2**53 - 1)
    await store.renew_lease(lease)

    with pytest.raises(DurableRunLeaseHeldError):
        await claim(store, worker_id="worker-2")


async def test_b7_the_same_worker_cannot_claim_twice(store: SqlRunStore) -> None:
    """Two requests of one isolate that share a worker id are two claims: the second is refused."""
    await lease_of(store, worker_id="isolate-1")

    with pytest.raises(DurableRunLeaseHeldError):
        await claim(store, worker_id="isolate-1")


async def test_b8_a_completed_run_is_read_without_a_lease(store: SqlRunStore, clock: Clock) -> None:
    """Replays are concurrent, and change neither status, outcome nor completion time."""
    lease = await lease_of(store, begin=STEP)
    ended = await store.settle(lease, Settlement(step_index=0, result="answer", outcome=RunOutcome(passed=True)))
    clock.advance(1_000)
    first, second = await claim(store, begin=STEP), await claim(store, worker_id="worker-2", begin=STEP)

    assert first.lease is None
    assert second.lease is None
    assert ended == first.run == second.run
    assert ["answer"] == [step.result for step in first.completed_steps]


async def test_b8_a_failed_run_that_is_retried_says_that_it_is_running(store: SqlRunStore) -> None:
    """A claim of a failed run is visible as such at once."""
    await store.end_run(await lease_of(store), RunStatus.FAILED, RunOutcome(notes="why"))
    claimed = await claim(store)

    assert (RunStatus.RUNNING, None, None) == (claimed.run.status, claimed.run.completed_at, claimed.run.outcome)


async def test_b9_a_completed_step_stays_completed(store: SqlRunStore) -> None:
    """Neither beginning it again nor failing it takes its result away."""
    lease = await lease_of(store, begin=STEP)
    await store.complete_step(lease, 0, "kept")

    with pytest.raises(DurableRunDivergenceError):
        await store.begin_step(lease, STEP)
    with pytest.raises(DurableRunDivergenceError):
        await store.fail_step(lease, 0, StepError(message="no"))
    step = await store.load_step("run-1", 0)
    assert step is not None
    assert (StepStatus.COMPLETED, "kept") == (step.status, step.result)


async def test_b10_a_step_that_was_never_begun_cannot_end(store: SqlRunStore) -> None:
    """Completing or failing it is a divergence, on every database alike."""
    lease = await lease_of(store)

    with pytest.raises(DurableRunDivergenceError):
        await store.complete_step(lease, 3, "x")
    with pytest.raises(DurableRunDivergenceError):
        await store.fail_step(lease, 3, StepError(message="x"))


async def test_b10_missing_runs_and_steps_are_none(store: SqlRunStore) -> None:
    """Reading what is not there is no error."""
    assert await store.load_run("nothing") is None
    assert await store.load_step("nothing", 0) is None


async def test_a_lease_is_free_exactly_when_it_expires(store: SqlRunStore, clock: Clock) -> None:
    """One millisecond before its expiry it is held; at its expiry it is free."""
    await lease_of(store)
    clock.advance(LEASE_MS - 1)
    with pytest.raises(DurableRunLeaseHeldError):
        await claim(store, worker_id="worker-2")
    clock.advance(1)
    claimed = await claim(store, worker_id="worker-2")

    assert claimed.lease is not None
    assert claimed.lease.epoch == 2


async def test_another_manifest_is_refused_even_while_the_lease_is_held(store: SqlRunStore) -> None:
    """A mismatch is said as a mismatch, whoever runs, and changes nothing."""
    lease = await lease_of(store)

    with pytest.raises(DurableRunInputMismatchError):
        await claim(store, worker_id="worker-2", manifest=manifest(2))
    assert await store.renew_lease(lease)


async def test_superseding_starts_a_completed_run_anew_with_the_other_manifest(store: SqlRunStore) -> None:
    """The old answer is gone, the epoch goes on, and the new manifest is the run's."""
    await store.settle(await lease_of(store, begin=STEP), Settlement(step_index=0, result="old"))
    other = STEP.__class__(step_index=0, intent="turn", kind="llm", input_hash="other")
    claimed = await claim(store, manifest=manifest(2), begin=other, supersede=True)

    assert claimed.lease is not None
    assert (2, RunStatus.RUNNING) == (claimed.lease.epoch, claimed.run.status)
    assert [] == list(claimed.completed_steps)
    with pytest.raises(DurableRunInputMismatchError):
        await claim(store)


async def test_superseding_respects_a_live_lease(store: SqlRunStore) -> None:
    """A running turn is not pulled away under its worker."""
    lease = await lease_of(store, begin=STEP)

    with pytest.raises(DurableRunLeaseHeldError):
        await claim(store, worker_id="worker-2", manifest=manifest(2), supersede=True)
    assert await store.renew_lease(lease)


async def test_superseding_spares_the_steps_of_a_run_with_the_same_manifest(store: SqlRunStore) -> None:
    """Only another manifest forgets what was recorded."""
    lease = await lease_of(store, begin=STEP)
    await store.complete_step(lease, 0, "kept")
    await store.end_run(lease, RunStatus.FAILED)

    assert ["kept"] == [step.result for step in (await claim(store, supersede=True)).completed_steps]


@pytest.mark.parametrize(("asked", "guards"), [(1, []), (2, [NEVER])])
async def test_superseding_spares_the_steps_of_a_run_that_waits(
    store: SqlRunStore, asked: int, guards: list[Guard]
) -> None:
    """One that was suspended, given up and is to go on behind others has none of its attempts counted, but its steps."""
    lease = await lease_of(store, begin=STEP)
    await store.complete_step(lease, 0, "kept")
    await store.suspend(lease, Wait(step_index=1, key="approval", wake_at="2026-01-02T00:00:00.000Z"))
    await store.give_up("run-1", RunOutcome(passed=False))
    with pytest.raises(Queued) as queued:
        await claim(store, queue=Queue(turn=Condition(sql="false", params=()), lease_ms=1_000))
    await store.leave_queue("run-1", queued.value.lease.holder)
    with suppress(NotFound):
        await claim(store, manifest=manifest(asked), supersede=True, guards=guards)

    assert ["kept"] == [step.result for step in await store.load_steps("run-1", 0)]


async def test_a_lapsed_claim_of_ones_own_is_claimed_anew(store: SqlRunStore, clock: Clock, database: Database) -> None:
    """A claim whose lost reply took longer than the lease does not return a dead lease."""
    store = SqlRunStore(database, token=lambda: "same")
    await lease_of(store)
    clock.advance(LEASE_MS)
    again = await lease_of(store)

    assert (2, clock.after(LEASE_MS)) == (again.epoch, again.expires_at)


async def test_the_epoch_fences_where_the_holder_does_not(database: Database, clock: Clock) -> None:
    """Two claims that share a holder are told apart by their epochs, in every write."""
    store = SqlRunStore(database, token=lambda: "same")
    stale = await lease_of(store, begin=STEP)
    clock.advance(LEASE_MS)
    await lease_of(store, begin=STEP)

    for write in (
        store.begin_step(stale, STEP),
        store.complete_step(stale, 0, "stale"),
        store.record_step(stale, STEP, attempts=9, elapsed_ms=1, result_json='"stale"'),
        store.fail_step(stale, 0, StepError(message="stale")),
        store.end_run(stale, RunStatus.FAILED),
        store.settle(stale, Settlement(step_index=0, result="stale")),
        store.renew_lease(stale),
    ):
        with pytest.raises(LeaseLost):
            await write
    step = await store.load_step("run-1", 0)
    assert step is not None
    assert (StepStatus.RUNNING, 2, None) == (step.status, step.attempts, step.result)


async def test_a_finish_needs_its_step(store: SqlRunStore) -> None:
    """A settlement whose step was never begun does not complete the run."""
    lease = await lease_of(store)

    with pytest.raises(LeaseLost):
        await store.settle(lease, Settlement(step_index=7, result="answer"))
    run = await store.load_run("run-1")
    assert run is not None
    assert run.status is RunStatus.RUNNING


async def test_superseding_with_the_same_manifest_replays(store: SqlRunStore) -> None:
    """What is the same turn after all is not paid for twice."""
    await store.settle(await lease_of(store, begin=STEP), Settlement(step_index=0, result="old"))
    claimed = await claim(store, begin=STEP, supersede=True)

    assert claimed.lease is None


async def test_run_ids_are_data(store: SqlRunStore) -> None:
    """B11: whatever a run is called, it is that run and no other, and no path."""
    names = ["../../etc/passwd", "a:b", "a/b", "a%2Fb", "ä", "'; DROP TABLE durable_runs; --", "x" * 500, "🙂"]
    for name in names:
        await lease_of(store, name)

    assert names == [run.run_id for run in [await store.load_run(name) for name in names] if run is not None]


async def test_timestamps_have_one_form(store: SqlRunStore) -> None:
    """Every timestamp is 24 characters of UTC with milliseconds, so text order is time order."""
    run = (await claim(store)).run

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", run.created_at)


async def test_a_lost_reply_to_a_finish_is_recognised(store: SqlRunStore) -> None:
    """Settling again after a settlement that was applied reports success and changes nothing."""
    lease = await lease_of(store, begin=STEP)
    first = await store.settle(lease, Settlement(step_index=0, result="answer"))
    second = await store.settle(lease, Settlement(step_index=0, result="answer"))

    assert first == second


async def test_a_finish_cannot_turn_into_its_opposite(store: SqlRunStore) -> None:
    """After a completed settlement whose reply was lost, settling as failed is refused: the answer stays."""
    lease = await lease_of(store, begin=STEP)
    await store.settle(lease, Settlement(step_index=0, result="answer"))

    with pytest.raises(LeaseLost):
        await store.settle(lease, Settlement(step_index=0, error=StepError(message="no")))
    assert ["answer"] == [step.result for step in (await claim(store)).completed_steps]


async def test_a_divergent_step_releases_the_claim(store: SqlRunStore) -> None:
    """A claim whose step is another one on record is refused, and blocks nobody."""
    await store.settle(await lease_of(store, begin=STEP), Settlement(step_index=0, error=StepError(message="x")))
    renamed = STEP.__class__(step_index=0, intent="renamed", kind="llm")
    with pytest.raises(DurableRunDivergenceError, match=r"renamed"):
        await claim(store, begin=renamed)

    assert (await claim(store, begin=STEP)).lease is not None


async def test_the_schema_says_its_version(store: SqlRunStore) -> None:
    """A database with the schema applied is at the version that the code needs."""
    assert DURABLE_SCHEMA_VERSION == await store.get_schema_version()
