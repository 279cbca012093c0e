"""`on_attempt_end`: a product is told how each attempt at a turn has ended, once, after its reader has everything."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from chatturn.chat.hooks.hooks import ChatTurnHooks, EndedAttempt, TurnContext
from chatturn.chat.turn.disconnects import CANCEL_REQUESTED
from chatturn.chat.turn.sinks import BufferSink
from chatturn.chat.turn.stream import StreamProducer
from chatturn.chat.turn.turn import ChatTurn, open_turn
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.ends import Cancelled, Completed, Failed, Suspended
from chatturn.events import EventBatch, text_delta
from tests.support.faults import FaultyDatabase
from tests.support.turns import Desk, Product, Step, open_sqlite


class Told(Product):
    """A product that notes how its attempts ended."""

    def __init__(self, *script: Step) -> None:
        super().__init__(*script)
        self.ended: list[EndedAttempt] = []

    async def on_attempt_end(self, attempt: EndedAttempt) -> None:
        """Note it."""
        self.ended.append(attempt)


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


async def test_each_attempt_is_told_once_and_a_replay_is_none(database: SqliteDatabase) -> None:
    """With what was asked, how long it took, and how it ended."""
    product = Told(text_delta("a"), 2.0, RuntimeError("broken"))
    desk = Desk(database, product)
    await desk.run()
    product.script = [text_delta("whole")]
    await desk.run()
    await desk.run()
    failed, done = product.ended

    assert [("chat:acme:thread-1:0", 1), ("chat:acme:thread-1:0", 2)] == [(e.run_id, e.attempt) for e in product.ended]
    assert isinstance(failed.end, Failed)
    assert ("broken", 2_000) == (str(failed.end.error), failed.duration_ms)
    assert Completed("whole") == done.end
    assert "hi" == done.manifest.input["userMessage"]


async def test_a_cancelled_attempt_has_what_it_had_said(database: SqliteDatabase) -> None:
    """And why it was stopped."""
    product = Told(text_delta("half"), 1_000.0)
    turn = await open_turn(Desk(database, product).input())
    assert isinstance(turn, ChatTurn)
    running = asyncio.create_task(turn.run(BufferSink()))
    await asyncio.sleep(1)
    turn.cancel()
    await running

    assert [Cancelled("half", CANCEL_REQUESTED)] == [each.end for each in product.ended]


async def test_a_suspended_attempt_has_what_it_waits_for(database: SqliteDatabase) -> None:
    """It is no failure."""

    class Waiting(Told):
        def produce(self, context: TurnContext) -> StreamProducer:
            return StreamProducer(self._wait(context))

        async def _wait(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
            yield text_delta(str(await context.durable.await_event("approved")))

    product = Waiting()
    await Desk(database, product).run()
    [told] = product.ended

    assert isinstance(told.end, Suspended)
    assert "approved" == told.end.wait.key


async def test_an_end_that_is_not_stored_is_none(database: SqliteDatabase) -> None:
    """Nobody knows whether it is."""
    faulty = FaultyDatabase(database)

    class Cutting(Told):
        def on_event(self, *_: Any) -> None:
            faulty.down = True

    product = Cutting(RuntimeError("x"))
    await Desk(faulty, product).run()

    assert [None] == [each.end for each in product.ended]


async def test_a_hook_that_fails_is_logged_and_changes_nothing(database: SqliteDatabase) -> None:
    """The reader has everything by then."""

    class Broken(ChatTurnHooks):
        def produce(self, context: TurnContext) -> StreamProducer:
            return Product(text_delta("a")).produce(context)

        async def on_attempt_end(self, attempt: EndedAttempt) -> None:
            raise KeyError(attempt.run_id)

    desk = Desk(database, Broken())
    lines = await desk.run()

    assert "session.run.completed" == lines[-1]["type"]
    assert ["on_attempt_end"] == [what["hook"] for event, what in desk.logged if event == "hook.failed"]
