"""Real processes over one SQLite file: they contend, are killed, are stopped, have wrong clocks; nothing is lost."""

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chatturn.database.migration import read_version
from chatturn.database.schema import DURABLE_SCHEMA_VERSION
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.records import RunStatus
from chatturn.durable.runner import RunDurableInput, run_durable
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import DurableRunLeaseHeldError
from chatturn.timestamps import timestamp
from tests.support import children
from tests.support.agent_runtime_database import make_version_1, rows_of, write_turns
from tests.support.clock import Clock
from tests.support.faults import FaultyDatabase
from tests.support.runs import manifest
from tests.support.turns import open_sqlite

RUNS = 100
RESULT = ["reserve done", "charge done", "ship done"]
TABLES = ("durable_runs", "durable_steps", "durable_events", "durable_waits")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the shared file is to be."""
    return tmp_path / "runs.sqlite3"


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    """Return where the effects on the world are noted."""
    return tmp_path / "effects"


def an_hour_later() -> str:
    """Return a moment at which every lease of a dead worker has lapsed."""
    return timestamp(datetime.now(UTC) + timedelta(hours=1))


def test_two_processes_complete_each_of_a_hundred_runs_once(path: Path, effects: Path) -> None:
    """They race for the same runs in the same order; each effect happens exactly once."""
    start = children.CONTEXT.Barrier(2)
    with ExitStack() as stack:
        both = [
            stack.enter_context(children.process(children.contend, path, effects, RUNS, start, name)) for name in "ab"
        ]
        for each in both:
            each.join(120)
    done = children.effects_in(effects)
    with children.open_store(path) as store:
        runs = [asyncio.run(store.load_run(f"run-{number}")) for number in range(RUNS)]

    assert [0, 0] == [each.exitcode for each in both]
    assert [(RunStatus.COMPLETED, 1, 3)] * RUNS == [(run.status, run.epoch, run.step_count) for run in runs if run]
    assert (3 * RUNS, {1}) == (len(done), set(Counter(key for _, key, _ in done).values()))


def places(kind: str, at_most: int, folder: Path) -> list[children.Place]:
    """Walk the task's life once, and return the places where a worker can die in it: at most so many of them."""
    with children.open_store(folder / "walk.sqlite3") as store, children.counted(store.sqlite, kind) as passed:
        asyncio.run(children.run_task(store, folder / "walk.effects"))
    return spread(kind, passed[0], at_most)


def spread(kind: str, count: int, at_most: int) -> list[children.Place]:
    """Return that many places of a kind, the first and the last among them."""
    assert count > 1
    picked = min(count, at_most)
    return [(kind, number * (count - 1) // (picked - 1)) for number in range(picked)]


@pytest.mark.parametrize(("kind", "at_most"), [("statement", 1_000), ("instructions", 12)])
def test_a_worker_may_be_killed_between_any_two_statements(tmp_path: Path, kind: str, at_most: int) -> None:
    """Killed at every one of them, and inside some: another process goes on, and nothing is lost or doubled."""
    everywhere = places(kind, at_most, tmp_path)
    repeated = 0
    for number, place in enumerate(everywhere):
        path, effects = tmp_path / f"{number}.sqlite3", tmp_path / f"{number}.effects"
        with children.process(children.work_until, path, effects, place) as victim:
            victim.join(120)
        recorded = recorded_steps(path)
        before = children.effects_in(effects)
        with children.open_store(path, moment=an_hour_later) as store:
            done = asyncio.run(children.run_task(store, effects))
            again = asyncio.run(children.run_task(store, effects))
        after = Counter(intent for intent, _, _ in children.effects_in(effects))

        assert -signal.SIGKILL == victim.exitcode, place
        assert (RESULT, RESULT, RunStatus.COMPLETED) == (done.result, again.result, done.record.status), place
        # What was recorded is not done again; the one step that was under way may be, under the same key.
        assert {*after} == {"reserve", "charge", "ship"}, place
        assert all(after[intent] == 1 for intent in recorded), place
        assert sum(after.values()) - 3 == len(before) - len(recorded) <= 1, place
        assert 3 == len({key for _, key, _ in children.effects_in(effects)}), place
        repeated += sum(after.values()) - 3
    assert repeated >= 3  # each step was once under way
    assert len(everywhere) > (20 if kind == "statement" else 10)


def recorded_steps(path: Path) -> list[str]:
    """Return the completed steps in a file that a dead worker left."""
    with SqliteDatabase(path) as database:
        [steps] = asyncio.run(rows_of(database, "durable_steps"))
    return [step["intent"] for step in steps if step["status"] == "completed"]


def test_a_stopped_worker_writes_nothing_when_it_wakes_up(path: Path) -> None:
    """SIGSTOP inside a step, past the lease; SIGCONT after another process has finished the run."""

    async def outlive(store: SqlRunStore) -> Any:
        async def successor() -> str:
            return "successor"

        run = RunDurableInput(
            run_id="run-1", manifest=manifest(), store=store, task_fn=lambda context: context.step("first", successor)
        )
        while True:
            try:
                return await run_durable(run)
            except DurableRunLeaseHeldError as held:
                await asyncio.sleep(held.retry_after_ms / 1000)

    ours, theirs = children.CONTEXT.Pipe()
    with (
        children.open_store(path) as store,
        children.process(children.work_while_watched, path, 1_000, theirs) as worker,
    ):
        assert ours.poll(120)
        assert worker.pid is not None
        with children.stopped(worker.pid):
            done = asyncio.run(outlive(store))
            before = asyncio.run(rows_of(store.database, *TABLES))
            ours.send("leave the step")
        worker.join(120)
        after = asyncio.run(rows_of(store.database, *TABLES))

    assert ("successor", 2) == (done.result, done.record.epoch)
    assert children.LEASE_LOST == worker.exitcode
    assert before == after


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/Adak"])
@pytest.mark.parametrize("skew_s", [-31_536_000.0, 31_536_000.0])
def test_a_worker_with_a_wrong_clock_is_a_worker_like_any(path: Path, skew_s: float, zone: str) -> None:
    """A year ahead it steals no lease; a year behind it loses none: the database's clock decides."""
    ours, theirs = children.CONTEXT.Pipe()
    with children.open_store(path) as store:
        claim: dict[str, Any] = {"manifest": manifest(), "worker_id": "parent", "lease_ms": 60_000}
        asyncio.run(store.start_or_resume(run_id="parents", **claim))
        began = datetime.now(UTC)
        with children.process(children.work_with_a_wrong_clock, path, skew_s, zone, theirs) as worker:
            assert ours.poll(120)
            stole, expires_at = ours.recv()
            worker.join(120)
        with pytest.raises(DurableRunLeaseHeldError) as held:
            asyncio.run(store.start_or_resume(run_id="childs", **claim))

    assert not stole
    assert timestamp(began + timedelta(seconds=59)) < expires_at < timestamp(datetime.now(UTC) + timedelta(seconds=61))
    assert 0 < held.value.retry_after_ms <= 60_000


async def test_any_reply_may_be_lost() -> None:
    """Applied, and nobody heard: the run goes on, and each effect happens once."""
    for batch in range(5):
        done: list[str] = []

        async def task(context: Any, done: list[str] = done) -> list[str]:
            async def effect(name: str) -> str:
                done.append(name)
                return name

            return [await context.step(name, lambda name=name: effect(name)) for name in "abc"]

        with open_sqlite() as database:
            faulty = FaultyDatabase(database)
            faulty.faults = {batch: "after"}
            store = SqlRunStore(faulty)
            ended = await run_durable(RunDurableInput(run_id="r", manifest=manifest(), store=store, task_fn=task))

        assert (["a", "b", "c"], ["a", "b", "c"], 1) == (ended.result, done, ended.record.epoch)


# Migrating


def agent_runtime_database(path: Path) -> None:
    """Make a database of agent-runtime, with turns."""
    with SqliteDatabase(path) as database:
        asyncio.run(make_version_1(database))
        asyncio.run(write_turns(database, Clock()))


def migrated_runs(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the version of a file's schema, and how many runs it has."""
    with SqliteDatabase(path) as database:
        [runs] = asyncio.run(rows_of(database, "durable_runs"))
        yield asyncio.run(read_version(database)), len(runs)


@pytest.mark.parametrize("is_new", [True, False])
def test_many_processes_may_open_one_file_at_once(tmp_path: Path, *, is_new: bool) -> None:
    """New or of an older version: each of them finds the schema, and none an error."""
    for round_ in range(3):
        path = tmp_path / f"{round_}.sqlite3"
        if not is_new:
            agent_runtime_database(path)
        start = children.CONTEXT.Barrier(4)
        with ExitStack() as stack:
            all_ = [stack.enter_context(children.process(children.migrate_until, path, None, start)) for _ in range(4)]
            for each in all_:
                each.join(120)

        assert [0] * 4 == [each.exitcode for each in all_]
        assert [(DURABLE_SCHEMA_VERSION, 0 if is_new else 6)] == list(migrated_runs(path))


@pytest.mark.slow
def test_a_migration_may_be_killed_between_any_two_statements(tmp_path: Path) -> None:
    """What it leaves is the old database or the new one, whole; the next one to open it ends the work."""
    walk = tmp_path / "walk.sqlite3"
    agent_runtime_database(walk)
    with SqliteDatabase(walk) as database, children.counted(database, "statement") as passed:
        database.migrate()
    found = Counter[int]()
    for place in spread("statement", passed[0], 1_000):
        path = tmp_path / f"{place[1]}.sqlite3"
        agent_runtime_database(path)
        with children.process(children.migrate_until, path, place) as victim:
            victim.join(120)
        [(version, runs)] = migrated_runs(path)
        found[version] += 1
        children.migrate_until(path, None)

        assert (-signal.SIGKILL, 6) == (victim.exitcode, runs), place
        assert [(DURABLE_SCHEMA_VERSION, 6)] == list(migrated_runs(path)), place
    assert {1, DURABLE_SCHEMA_VERSION} == set(found)
