"""A product's steps when the engine ends its attempt: none is done on the way out, and the next attempt goes on."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest

from chatturn.chat.hooks.hooks import ChatTurnHooks, FinishedTurn, TurnContext
from chatturn.chat.turn.sinks import BufferSink
from chatturn.chat.turn.stream import StreamProducer
from chatturn.chat.turn.turn import ChatTurn, open_turn
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.context import DurableContext
from chatturn.events import ChatStreamEvent, EventBatch, text_delta
from tests.support.turns import Desk, open_sqlite

Said = AsyncGenerator[EventBatch, None]

ERROR = ChatStreamEvent("error", {"message": "the model is down"})


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


class Shop(ChatTurnHooks):
    """Reserves, says something, confirms and frees; its model is down at first."""

    def __init__(self, shape: Callable[["Shop", DurableContext], Said], *between: EventBatch | float) -> None:
        self.shape = shape
        self.between = list(between)
        self.effects: list[str] = []

    def produce(self, context: TurnContext) -> StreamProducer:
        """Answer in the shape that is tried."""
        return StreamProducer(self.shape(self, context.durable))

    def do(self, name: str) -> Callable[[], Awaitable[str]]:
        """Return a step's function that leaves a trace."""

        async def run() -> str:
            self.effects.append(name)
            return name

        return run

    async def model(self) -> Said:
        """Say what comes in between, once: the next attempt finds the model well."""
        between, self.between = self.between, []
        for each in between:
            if isinstance(each, float):
                await asyncio.sleep(each)
            else:
                yield each
        yield text_delta("done")


async def in_a_finally(shop: Shop, durable: DurableContext) -> Said:
    await durable.step("reserve", shop.do("reserve"))
    try:
        async for said in shop.model():
            yield said
        await durable.step("confirm", shop.do("confirm"))
    finally:
        await durable.step("free", shop.do("free"))


async def in_an_async_with(shop: Shop, durable: DurableContext) -> Said:
    @asynccontextmanager
    async def reserved() -> AsyncGenerator[None, None]:
        await durable.step("reserve", shop.do("reserve"))
        try:
            yield
        finally:
            await durable.step("free", shop.do("free"))

    async with reserved():
        async for said in shop.model():
            yield said
        await durable.step("confirm", shop.do("confirm"))


async def where_everything_is_caught(shop: Shop, durable: DurableContext) -> Said:
    await durable.step("reserve", shop.do("reserve"))
    try:
        async for said in shop.model():
            yield said
    except BaseException:
        await durable.step("undo", shop.do("undo"))
        raise
    await durable.step("confirm", shop.do("confirm"))
    await durable.step("free", shop.do("free"))


async def in_a_gather_on_the_way_out(shop: Shop, durable: DurableContext) -> Said:
    await durable.step("reserve", shop.do("reserve"))
    try:
        async for said in shop.model():
            yield said
        await durable.step("confirm", shop.do("confirm"))
    finally:
        await asyncio.gather(durable.step("free", shop.do("free")), asyncio.sleep(0))


async def in_a_group_on_the_way_out(shop: Shop, durable: DurableContext) -> Said:
    await durable.step("reserve", shop.do("reserve"))
    try:
        async for said in shop.model():
            yield said
        await durable.step("confirm", shop.do("confirm"))
    finally:
        async with asyncio.TaskGroup() as group:
            group.create_task(durable.step("free", shop.do("free")))


async def in_a_generator_of_its_own(shop: Shop, durable: DurableContext) -> Said:
    async def inner() -> Said:
        try:
            async for said in shop.model():
                yield said
            await durable.step("confirm", shop.do("confirm"))
        finally:
            await durable.step("free", shop.do("free"))

    await durable.step("reserve", shop.do("reserve"))
    async for said in inner():
        yield said


SHAPES = [
    in_a_finally,
    in_an_async_with,
    where_everything_is_caught,
    in_a_gather_on_the_way_out,
    in_a_group_on_the_way_out,
    in_a_generator_of_its_own,
]


async def _runs(desk: Desk, end: Callable[[ChatTurn, "asyncio.Task[None]"], Any], at: float, turns: int) -> None:
    turn = await open_turn(desk.input())
    assert isinstance(turn, ChatTurn)
    running = asyncio.create_task(turn.run(BufferSink()))
    await asyncio.sleep(at)
    for _ in range(turns):
        await asyncio.sleep(0)
    end(turn, running)
    with suppress(asyncio.CancelledError):
        await running


async def _goes_on(desk: Desk, shop: Shop) -> None:
    lines = await desk.run()
    assert "session.run.completed" == lines[-1]["type"], lines[-1]
    assert ["reserve", "confirm", "free"] == shop.effects
    assert [("completed",)] * 4 == await desk.rows("SELECT status FROM durable_steps")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
@pytest.mark.parametrize("said", [ERROR, ChatStreamEvent("x", {"no": object()})], ids=["an error", "no line"])
async def test_an_end_that_the_engine_finds_in_the_stream_runs_no_step(
    database: SqliteDatabase, shape: Any, said: ChatStreamEvent
) -> None:
    """An error that was said, and what no line can carry: the producer stands at a ``yield``, and is closed there."""
    shop = Shop(shape, text_delta("half"), said)
    desk = Desk(database, shop)
    lines = await desk.run()

    assert "session.run.failed" == lines[-1]["type"]
    assert ["reserve"] == shop.effects
    await _goes_on(desk, shop)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
@pytest.mark.parametrize("how", ["abort", "cancelled from outside"])
async def test_a_turn_that_is_stopped_runs_no_step(shape: Any, how: str) -> None:
    """At each turn of the event loop, wherever the product stands."""

    def end(turn: ChatTurn, running: "asyncio.Task[None]") -> None:
        turn.abort() if how == "abort" else running.cancel()

    stopped = 0
    for at, turns in [(0.0, turns) for turns in range(12)] + [(1.0, 0), (5.0, 0), (5.0, 1), (5.0, 2), (5.0, 4)]:
        with open_sqlite() as database:
            shop = Shop(shape, text_delta("half"), 5.0, text_delta("more"))
            desk = Desk(database, shop)
            await _runs(desk, end, at, turns)
            [(status,)] = await desk.rows("SELECT status FROM durable_runs")
            if status != "completed":
                stopped += 1
                assert shop.effects in ([], ["reserve"], ["reserve", "confirm"])
                assert [] == await desk.rows("SELECT intent FROM durable_steps WHERE error_json LIKE '%final%'")
            await _goes_on(desk, shop)
    assert stopped > 10


async def test_a_turn_that_its_user_cancels_runs_no_step(database: SqliteDatabase) -> None:
    """Its worker may die before that is stored, and then the turn goes on."""
    shop = Shop(in_a_finally, text_delta("half"), 5.0)
    desk = Desk(database, shop)
    await _runs(desk, lambda turn, _running: turn.cancel(), 1.0, 0)

    assert ["reserve"] == shop.effects
    assert [("completed",)] == await desk.rows("SELECT status FROM durable_runs")


class Keeping(Shop):
    """Keeps what `produce` was given, and uses it in a later hook; sets a context variable as well."""

    def __init__(self, hook: str) -> None:
        super().__init__(in_a_finally)
        self.hook = hook
        self.seen: dict[str, str] = {}

    def produce(self, context: TurnContext) -> StreamProducer:
        """Keep the context."""
        self.durable = context.durable
        TENANT.set("acme")
        return super().produce(context)

    async def transform_final_text(self, text: str) -> str:
        """Leave the text as it is."""
        await self.called("transform_final_text", text)
        return text

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        """Store nothing."""
        await self.called("persist_assistant_message", turn.final_text)

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        """Tell nobody."""
        await self.called("on_turn_complete", turn.final_text)

    async def called(self, hook: str, text: str) -> None:
        """Note what is seen there, and ask for a step if it is the hook that is tried."""
        assert "done" == text
        self.seen[hook] = TENANT.get()
        if hook == self.hook:
            await self.durable.step("late", self.do("late"))


TENANT = ContextVar("tenant", default="nobody's")
LATER_HOOKS = ["transform_final_text", "persist_assistant_message", "on_turn_complete"]


@pytest.mark.parametrize("hook", LATER_HOOKS)
async def test_a_step_of_a_later_hook_is_an_error_of_that_hook(database: SqliteDatabase, hook: str) -> None:
    """Not of the engine: the turn ends with a line, and the step does nothing."""
    shop = Keeping(hook)
    lines = await Desk(database, shop).run()

    last = "failed" if hook == "transform_final_text" else "completed"
    assert f"session.run.{last}" == lines[-1]["type"]
    assert ["reserve", "confirm", "free"] == shop.effects


async def test_later_hooks_see_the_context_variables_that_produce_has_set(database: SqliteDatabase) -> None:
    """As plain asyncio code does that awaits one after the other."""
    shop = Keeping("none of them")
    await Desk(database, shop).run()
    assert dict.fromkeys(LATER_HOOKS, "acme") == shop.seen
