"""
Several workers, each over a database that stalls, loses requests and loses replies, at one run or one turn.

What happens is drawn from a seed, in virtual time, so a failure can be looked at again.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from chatturn.database.api import Database, Result, Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.context import DurableContext, StepCall
from chatturn.durable.identifiers import step_id
from chatturn.durable.runner import RunDurableInput, run_durable
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.steps import StepRetry
from chatturn.errors import ChatTurnError, StoreUnavailable
from tests.support.runs import manifest
from tests.support.turns import open_sqlite
from tests.turns.test_agent import RUN, Agent, Model, Shop

LEASE_MS = 5_000
LOSS = 0.12


class BadConnection:
    """The database as one worker reaches it: slow at times, and deaf or mute at others."""

    def __init__(self, database: Database, chance: random.Random) -> None:
        self._database = database
        self._chance = chance

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements*, unless they are lost on the way; or lose the reply."""
        chance = self._chance
        await asyncio.sleep(20 if chance.random() < 0.03 else chance.choice([0, 0.01, 0.1, 0.5]))
        fate = chance.random()
        if fate < LOSS:
            raise StoreUnavailable("lost on the way")
        outcomes = await self._database.batch(statements)
        await asyncio.sleep(chance.choice([0, 0.01, 0.5]))
        if fate < 2 * LOSS:
            raise StoreUnavailable("the reply was lost")
        return outcomes


def rows(database: SqliteDatabase, query: str) -> list[tuple[Any, ...]]:
    """Read rows as tuples."""
    return [tuple(row) for row in database._connection.execute(query)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
async def test_workers_who_contend_for_a_run_agree_on_it(seed: int) -> None:
    """Each gets the same results in the end, though some of them are cancelled; all steps are on record once."""
    chance = random.Random(seed)

    async def task(context: DurableContext) -> list[Any]:
        async def draw() -> float:
            await asyncio.sleep(chance.choice([0, 1, 8]))
            return chance.random()

        retry = StepRetry(max_attempts=chance.choice([1, 3]))
        drawn: list[Any] = [await context.step(f"step {number}", draw, retry=retry) for number in range(4)]
        await context.sleep(30_000)
        return drawn + await context.gather(*(StepCall(intent=name, run=draw) for name in "xyz"))

    async def worker(database: SqliteDatabase) -> list[Any]:
        store = SqlRunStore(BadConnection(database, chance))
        run = RunDurableInput(
            run_id="run-1", manifest=manifest(), store=store, task_fn=task, lease_ms=LEASE_MS, log=lambda *_: None
        )
        while True:
            attempt = asyncio.create_task(run_durable(run))
            if chance.random() < 0.2:
                await asyncio.sleep(chance.choice([0.1, 1, 5]))
                attempt.cancel()
            try:
                done = await attempt
            except (ChatTurnError, asyncio.CancelledError):
                pass
            else:
                if done.result is not None:
                    return done.result
            await asyncio.sleep(chance.choice([0.1, 3, 10]))

    with open_sqlite() as database:
        first, *others = await asyncio.gather(*(worker(database) for _ in range(4)))

        assert [first] * 3 == others
        assert [("completed", None, 8)] == rows(
            database, "SELECT status, lease_holder_id, step_count FROM durable_runs"
        )
        assert ["completed"] * 8 == [status for (status,) in rows(database, "SELECT status FROM durable_steps")]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
async def test_workers_who_contend_for_an_agents_turn_do_nothing_twice(seed: int) -> None:
    """One answer, no effect under a key that is not on record, and no two lines of the log with the same seq."""
    chance = random.Random(seed)
    effects: dict[str, list[str]] = {}

    async def worker(database: SqliteDatabase) -> None:
        model = Model(
            [("note", {"text": "a"}), ("send", {"text": "b"})], [("note", {"text": "c"}), ("flaky", {})], "done"
        )
        connection = BadConnection(database, chance)
        shop = Shop(connection, model, Agent(effects=effects), lease_ms=LEASE_MS, turn_attempts=1_000)
        while True:
            try:
                last = (await shop.desk.run())[-1]
                if last["type"] == "session.run.completed":
                    return
                if last["type"] == "session.run.suspended":
                    await shop.decide(last["data"]["key"], approved=True)
            except ChatTurnError:
                pass
            await asyncio.sleep(chance.choice([0.1, 3, 10]))

    with open_sqlite() as database:
        await asyncio.gather(*(worker(database) for _ in range(3)))
        tools = rows(database, "SELECT step_index, intent FROM durable_steps WHERE kind = 'tool'")
        segments = rows(database, "SELECT lines FROM chat_segments ORDER BY first_seq")
        seqs = [json.loads(line)["seq"] for (lines,) in segments for line in lines[:-1].split("\n")]

        assert [("completed", None)] == rows(database, "SELECT status, lease_holder_id FROM durable_runs")
        assert [("done",)] == rows(database, "SELECT content FROM chat_messages WHERE role = 'assistant'")
        assert {step_id(RUN, index, intent) for index, intent in tools} == set(effects)
        assert 4 == len(effects)
        assert sorted(set(seqs)) == seqs
