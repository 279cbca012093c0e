"""
A worker dies at every place of a turn, and nothing is lost, doubled or stuck.

Its life is walked once to count the places: before and after every database batch, every event of the model,
every line to the reader, every hook.  Then it dies at each of them in turn.  The dead do nothing more, not
even in their ``finally``.  (A batch is one transaction, so dying at a statement inside it is dying before it;
the kills of whole processes in ``tests/e2e`` hold SQLite and D1 to that.)
"""

import asyncio
import gc
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from chatturn.chat.hooks.hooks import ChatTurnHooks, FinishedTurn, TurnContext
from chatturn.chat.hooks.outbox import Outbox
from chatturn.chat.thread.identity import turn_manifest
from chatturn.chat.turn.sinks import BufferSink
from chatturn.chat.turn.stream import StreamProducer
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import DurableRunLeaseHeldError
from chatturn.events import EventBatch, text_delta, usage_event
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.turns import IDENTITY, Desk, open_sqlite

LEASE_MS = 60_000


class World:
    """What outlives a worker: the database, and what the model and the product's own store have seen."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.database = database
        self.model_calls: list[int] = []
        self.persisted: list[tuple[str, str]] = []

    async def worker(self, fuse: Fuse) -> list[dict[str, Any]]:
        """Run the turn in a worker that dies at its fuse's point."""
        desk = Desk(MortalDatabase(self.database, fuse), MortalProduct(self, fuse), lease_ms=LEASE_MS)
        return await desk.run(MortalSink(fuse))

    async def outlive(self) -> list[dict[str, Any]]:
        """Retry until the turn is answered, as a client would; a lease may stand in the way for one term."""
        for _ in range(3):
            lines = await self.worker(Fuse())
            if lines[-1]["type"] == "session.run.completed":
                return lines
            assert "turn_in_flight" == lines[-1]["data"]["code"]
            await asyncio.sleep(LEASE_MS / 1000)
        raise AssertionError("a lease is stuck for longer than its term")

    async def sweep(self) -> None:
        """Let the cron pass by twice, long after."""
        hooks = MortalProduct(self, Fuse())
        for _ in range(2):
            await asyncio.sleep(600)
            await Outbox(database=self.database, hooks=hooks, log=lambda *_: None).sweep()


class MortalProduct(ChatTurnHooks):
    """A product with every hook, each a place to die."""

    def __init__(self, world: World, fuse: Fuse) -> None:
        self._world, self._fuse = world, fuse

    def produce(self, context: TurnContext) -> StreamProducer:
        self._fuse.pass_by("produce")
        return StreamProducer(self._answer(context.attempt))

    async def _answer(self, attempt: int) -> AsyncGenerator[EventBatch, None]:
        self._fuse.pass_by("before the model is called")
        self._world.model_calls.append(attempt)
        for event in (text_delta("the "), [text_delta("an"), text_delta("swer")], usage_event(tokensOut=3)):
            self._fuse.pass_by("an event of the model")
            yield event
        self._fuse.pass_by("the model's end")

    async def transform_final_text(self, text: str) -> str:
        self._fuse.pass_by("transform")
        return text.upper()

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        self._fuse.pass_by("before persist")
        self._world.persisted.append((turn.idempotency_key, turn.final_text))
        self._fuse.pass_by("after persist")

    async def on_turn_complete(self, _turn: FinishedTurn) -> None:
        self._fuse.pass_by("on_turn_complete")


class MortalSink(BufferSink):
    """A reader; each line on its way is a place to die."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self._fuse = fuse

    def write(self, text: str) -> None:
        self._fuse.pass_by("a write")
        super().write(text)

    async def close(self) -> None:
        self._fuse.pass_by("the close")
        await super().close()


def _places() -> list[str]:
    async def live() -> list[str]:
        with open_sqlite() as database:
            fuse = Fuse()
            await World(database).worker(fuse)
            return fuse.places

    return asyncio.run(live())


PLACES = _places()


@pytest.fixture
def world() -> Iterator[World]:
    """A world with an empty database."""
    with open_sqlite() as database:
        yield World(database)


def test_there_are_places_to_die_everywhere() -> None:
    """The walk passes the claim, the model, the reader, the finish, the hooks and the marks."""
    assert ["before a batch", "after a batch", "a write", "produce", "before the model is called"] == PLACES[:5]
    assert 6 == sum("batch" in place for place in PLACES)
    assert len(PLACES) >= 20


@pytest.mark.parametrize("point", range(len(PLACES)), ids=lambda n: f"{n}-{PLACES[n].replace(' ', '-')}")
async def test_a_worker_may_die_anywhere(world: World, point: int) -> None:
    """One stored answer, one message, one model call an attempt, every hook done, no lease beyond its term."""
    with pytest.raises(Crash):
        await world.worker(Fuse(point))
    gc.collect()
    died_at = asyncio.get_running_loop().time()
    lines = await world.outlive()
    waited_s = asyncio.get_running_loop().time() - died_at
    await world.sweep()

    assert waited_s <= LEASE_MS / 1000
    assert len(set(world.model_calls)) == len(world.model_calls) <= 2
    desk = Desk(world.database)
    assert [("THE ANSWER",)] == await desk.rows("SELECT content FROM chat_messages WHERE role = 'assistant'")
    assert [("completed", "completed")] == await desk.rows(
        "SELECT r.status AS run, s.status AS step FROM durable_runs AS r JOIN durable_steps AS s USING (run_id)"
    )
    [(epoch,)] = await desk.rows("SELECT epoch FROM durable_runs")
    assert {(f"chat:acme:thread-1:0/{epoch}/persist_assistant_message", "THE ANSWER")} == set(world.persisted)
    assert {("done",)} == set(await desk.rows("SELECT status FROM chat_outbox"))
    assert 1 == sum(line["type"].startswith("session.run.co") for line in lines)


@pytest.mark.parametrize("first", range(0, len(PLACES), 3))
@pytest.mark.parametrize("second", range(1, len(PLACES), 4))
async def test_workers_may_die_one_after_another(world: World, first: int, second: int) -> None:
    """The same holds when the worker that takes over dies, too."""
    for point in (first, second):
        try:
            await world.worker(Fuse(point))
        except Crash:
            await asyncio.sleep(LEASE_MS / 1000)
    await world.outlive()
    await world.sweep()

    assert len(set(world.model_calls)) == len(world.model_calls) <= 3
    assert [("THE ANSWER",)] == await Desk(world.database).rows(
        "SELECT content FROM chat_messages WHERE role = 'assistant'"
    )
    assert 1 == len(set(world.persisted))


async def test_a_retry_before_the_lease_lapses_is_told_when(world: World) -> None:
    """Right after a crash inside the answer, a retry is refused with the rest of the term, not longer."""
    point = PLACES.index("an event of the model")
    with pytest.raises(Crash):
        await world.worker(Fuse(point))
    await asyncio.sleep(20)
    desk = Desk(world.database)
    manifest = turn_manifest(IDENTITY, project_id="legal-agent", domain="legal", user_message="hi", model=None)

    with pytest.raises(DurableRunLeaseHeldError) as held:
        await desk.input().deployment.store.start_or_resume(
            run_id="chat:acme:thread-1:0", manifest=manifest, worker_id="w", lease_ms=LEASE_MS
        )
    assert 40_000 == pytest.approx(held.value.retry_after_ms, abs=2)
