"""Runs that wait for their start: pending under a lease of who waits, begun by whoever's turn it is."""

from typing import Any

import pytest

from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.thread.queue_sql import Front, begins_now, its_turn, read_due_pending, room
from chatturn.chat.turn.sql import begin_turn
from chatturn.database.api import Database, Statement
from chatturn.durable.records import Claim, Lease, RunStatus
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.store import Begin, Guard, Queue, Queued
from chatturn.errors import DurableRunLeaseHeldError, QueueFull, SessionBusy
from tests.support.clock import Clock
from tests.support.runs import claim

STEP = Begin(step_index=0, intent="answer", kind="llm")
WAIT_MS = 5_000


def place(index: int) -> ChatTurnIdentity:
    return ChatTurnIdentity(tenant_id="acme", session_id="thread", user_id="ann", turn_index=index)


async def ask(
    store: SqlRunStore, index: int, holder: str | None = None, guards: tuple[Guard, ...] = ()
) -> Claim | Queued:
    """Claim a turn of the session, or let it wait."""
    identity = place(index)
    begin = begin_turn(identity, user_message=f"q{index}", model=None, metadata_json=None)
    queue = Queue(turn=its_turn(identity), lease_ms=WAIT_MS, holder=holder)
    run_id = turn_run_id(identity)
    try:
        return await claim(store, run_id, begin=STEP, with_statements=[begin], queue=queue, guards=guards)
    except Queued as queued:
        return queued


async def waits(store: SqlRunStore, index: int, holder: str | None = None) -> Queued:
    """Ask for a turn that has to wait."""
    queued = await ask(store, index, holder)
    assert isinstance(queued, Queued)
    return queued


async def begins(store: SqlRunStore, index: int, holder: str | None = None) -> Lease:
    """Ask for a turn that may begin."""
    claimed = await ask(store, index, holder)
    assert isinstance(claimed, Claim)
    assert claimed.lease is not None
    return claimed.lease


async def stands(database: Database, index: int) -> dict[str, Any]:
    """Return a turn's run."""
    read = Statement("SELECT * FROM durable_runs WHERE run_id = ?1", (turn_run_id(place(index)),))
    return dict((await database.batch([read]))[0].rows[0])


async def test_a_run_waits_and_is_begun(store: SqlRunStore, database: Database) -> None:
    """Waiting is no attempt: no epoch, no step; what is asked is on record."""
    first = await begins(store, 0)
    queued = await waits(store, 1)
    front = Front.of(queued.told)
    assert front == Front(
        position=1, run_id=turn_run_id(place(0)), status="running", turn_index=0, left=False, key=None, wake_at=None
    )
    run = await stands(database, 1)
    assert ("pending", 0, 0, 0) == (run["status"], run["epoch"], run["attempts"], run["step_count"])
    [steps, turns] = await database.batch(
        [Statement("SELECT * FROM durable_steps WHERE run_id LIKE '%:1'"), Statement("SELECT * FROM chat_turns")]
    )
    assert not steps.rows
    assert ["q0", "q1"] == [row["user_message"] for row in turns.rows]

    again = await waits(store, 1, queued.lease.holder)
    await store.end_run(first, RunStatus.COMPLETED)
    lease = await begins(store, 1, again.lease.holder)
    assert 1 == lease.epoch


async def test_a_wait_is_its_holders_until_it_lapses(store: SqlRunStore, clock: Clock) -> None:
    """Renewed by each look; then whoever comes has it."""
    await begins(store, 0)
    queued = await waits(store, 1)
    queue = Queue(turn=its_turn(place(1)), lease_ms=WAIT_MS)
    for _ in range(3):
        clock.advance(WAIT_MS - 1)
        told = await store.renew_wait(queued.lease, queue)
        assert told is not None
        assert not told["holds"]
    with pytest.raises(DurableRunLeaseHeldError):
        await ask(store, 1)
    clock.advance(WAIT_MS)
    other = await waits(store, 1)
    assert await store.renew_wait(queued.lease, queue) is None
    await store.leave_queue(queued.lease.run_id, queued.lease.holder)
    with pytest.raises(DurableRunLeaseHeldError):
        await ask(store, 1)
    await store.leave_queue(other.lease.run_id, other.lease.holder)
    await waits(store, 1)


async def test_what_is_in_front(store: SqlRunStore, database: Database, clock: Clock) -> None:
    """Whatever runs, and what is pending at a lower index; none of another session."""
    lease = await begins(store, 5)
    for index, position in ((7, 1), (6, 1), (8, 3), (0, 1)):
        front = Front.of((await waits(store, index)).told)
        assert front is not None
        assert (position, turn_run_id(place(5))) == (front.position, front.run_id)
    await store.end_run(lease, RunStatus.COMPLETED)
    for index in (6, 7, 8):
        with pytest.raises(SessionBusy):
            await claim(store, turn_run_id(place(index)), guards=[begins_now(place(index))])
    clock.advance(WAIT_MS)
    [due] = await database.batch([read_due_pending("test-project", 10)])
    assert [turn_run_id(place(0))] == [row["run_id"] for row in due.rows]


async def test_a_queue_has_room_for_so_many(store: SqlRunStore) -> None:
    """One that waits already has its place, and one that need not wait takes none."""
    lease = await begins(store, 0, None)
    full = (room(place(1), 1),)
    first = await ask(store, 1, None, full)
    assert isinstance(first, Queued)
    assert isinstance(await ask(store, 1, first.lease.holder, full), Queued)
    with pytest.raises(QueueFull):
        await ask(store, 2, None, (room(place(2), 1),))
    assert await store.load_run(turn_run_id(place(2))) is None
    await store.end_run(lease, RunStatus.COMPLETED)
    assert isinstance(await ask(store, 0, None, (room(place(0), 1),)), Claim)


async def test_whether_a_session_is_busy_is_read_off_indexes(store: SqlRunStore, database: Database) -> None:
    """Of what is not over: a look does not depend on how long the session is."""
    await begins(store, 0)
    condition = its_turn(place(1))
    text = condition.sql
    for at in reversed(range(len(condition.params))):
        text = text.replace(f"{{{at}}}", f"?{at + 1}")
    look = Statement(f"EXPLAIN QUERY PLAN SELECT {text}", condition.params[:5])
    [plan] = await database.batch([look])
    details = [str(row["detail"]) for row in plan.rows]
    of_runs = [detail for detail in details if " r " in f"{detail} "]
    assert any("idx_durable_runs_open (run_id>? AND run_id<?)" in detail for detail in of_runs), details
    assert any("idx_durable_runs_suspended (run_id>? AND run_id<?)" in detail for detail in of_runs), details
    assert all(detail.startswith("SEARCH") for detail in of_runs), details
