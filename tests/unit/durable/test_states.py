"""`MOVES` and `ENDS` are what the SQL does and what the log says: every move is tried on every status, on SQLite."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from chatturn.chat.turn.finish import ending_words
from chatturn.database.api import Statement
from chatturn.durable.ends import Cancelled, Completed, End, Failed, Suspended
from chatturn.durable.local_stores import InMemoryDurableRunStore
from chatturn.durable.records import Lease, RunOutcome, RunStatus, Wait
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.states import ENDS, MOVES, State
from chatturn.durable.store import Condition, Queue, Queued
from chatturn.errors import DurableRunError
from tests.support.clock import Clock
from tests.support.runs import claim, lease_of, manifest
from tests.support.turns import IDENTITY

HOUR_MS = 3_600_000
PAGE = (Path(__file__).parents[3] / "docs/reference/schema.md").read_text("utf-8")
WAIT = Wait(step_index=0, key="k", wake_at="2027-01-01T00:00:00.000Z")

DOES: dict[str, Callable[[SqlRunStore, Lease], Awaitable[object]]] = {
    "claim": lambda store, _: claim(store),
    "supersede": lambda store, _: claim(store, manifest=manifest(2), supersede=True),
    "queue": lambda store, _: claim(store, queue=Queue(turn=Condition(sql="false", params=()), lease_ms=1_000)),
    "complete": lambda store, lease: store.end_run(lease, RunStatus.COMPLETED),
    "fail": lambda store, lease: store.end_run(lease, RunStatus.FAILED),
    "suspend": lambda store, lease: store.suspend(lease, WAIT),
    "give up": lambda store, lease: store.give_up(lease.run_id, RunOutcome(passed=False)),
}


async def stands(store: SqlRunStore, run_id: str) -> State:
    run = await store.load_run(run_id)
    return None if run is None else run.status


async def put(store: SqlRunStore, status: State) -> Lease:
    """Make a run that stands there, as the moves leave it; return a lease that it has, or had."""
    lease = await lease_of(store)
    if status is None:
        await store.database.batch([Statement("DELETE FROM durable_runs")])
    elif status is not RunStatus.RUNNING:
        free = "UPDATE durable_runs SET status = ?1, lease_holder_id = NULL, lease_expires_at = NULL"
        await store.database.batch([Statement(free, (status,))])
    return lease


@pytest.mark.parametrize("status", [None, *RunStatus])
@pytest.mark.parametrize("name", MOVES)
async def test_the_sql_moves_a_run_as_the_table_says(name: str, status: State) -> None:
    """And leaves it where it is from anywhere else."""
    clock, move = Clock(), MOVES[name]
    store = InMemoryDurableRunStore(moment=clock.moment)
    lease = await put(store, status)
    if not move.leased:
        clock.advance(HOUR_MS)
    with suppress(Queued):
        try:
            await DOES[name](store, lease)
        except DurableRunError:
            assert status not in move.before
    found = await stands(store, lease.run_id)
    await store.close()

    assert found == (move.after if status in move.before else status)


@pytest.mark.parametrize("name", [name for name, move in MOVES.items() if not move.leased])
async def test_no_move_takes_a_run_whose_lease_is_live(name: str) -> None:
    """It is its holder's until the lease lapses."""
    store = InMemoryDurableRunStore(moment=Clock().moment)
    lease = await lease_of(store)
    try:
        await DOES[name](store, lease)
    except DurableRunError:
        assert name != "give up"
    renewed = await store.renew_lease(lease)
    await store.close()

    assert lease.epoch == renewed.epoch


@pytest.mark.parametrize(
    "end",
    [Completed("a"), Cancelled("a", "requested"), Suspended(WAIT), Failed(ValueError("x"))],
    ids=lambda e: type(e).__name__,
)
def test_the_last_line_is_the_one_in_the_table(end: End) -> None:
    """Exactly one line ends an attempt's log."""
    words = ending_words(IDENTITY, end)

    assert ENDS[type(end)].line == words[-1].type
    assert {state.line for state in ENDS.values()}.isdisjoint(word.type for word in words[:-1])


def test_every_move_of_a_holder_is_some_attempts_end() -> None:
    """There is no other way to let go of a lease but to lose it."""
    assert {name for name, move in MOVES.items() if move.leased} == {state.move for state in ENDS.values()}


def test_the_manual_has_both_tables() -> None:
    """Row by row."""
    order: list[State] = [None, *RunStatus]
    for name, move in MOVES.items():
        before = ", ".join("none" if each is None else f"`{each}`" for each in order if each in move.before)
        needs = "the live lease" if move.leased else "no live lease"
        assert f"\n| `{name}` | {before} | `{move.after}` | {needs} |\n" in PAGE
    for end, state in ENDS.items():
        assert f"\n| `{end.__name__}` | `{state.move}` | `{state.line}` |\n" in PAGE
