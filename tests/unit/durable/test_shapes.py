"""
Ordinary Python around durable steps: each shape with a worker that dies at every await, write and effect.

A world is a database, a list of effects and the time; workers come and go.  In each life one worker dies, others go on
until the run is over, and then it is replayed.  No recorded step runs twice, no step more than twice, and every later
attempt takes the way that is on record.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest

from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.context import DurableContext, StepCall
from chatturn.durable.runner import RunDurableInput, RunDurableResult, default_sources, run_durable
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import DurableRunLeaseHeldError
from chatturn_testing.crashes import _MortalLoop
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.runs import LEASE_MS, manifest
from tests.support.turns import open_sqlite

HOUR_MS = 3_600_000


class Flaky(Exception):
    """What a service raises that is down for a moment."""

    def __init__(self, code: int, *, hint: str = "later") -> None:
        super().__init__(f"error {code}")
        self.code = code
        self.hint = hint


class Outside:
    """What the steps do to others, and what others do to them."""

    def __init__(self, fuse: Fuse, effects: list[str], down: set[str]) -> None:
        self.fuse = fuse
        self.effects = effects
        self.down = down

    def do(self, name: str, *, takes_s: float = 0.01) -> Callable[[], Awaitable[str]]:
        """Return a step's function; services in *down* fail at their first call."""

        async def run() -> str:
            self.fuse.pass_by(f"before {name}")
            if name in self.down:
                self.down.discard(name)
                raise Flaky(503)
            self.effects.append(name)
            self.fuse.pass_by(f"inside {name}")
            await asyncio.sleep(takes_s)
            return name

        return run


Shape = Callable[[DurableContext, Outside], Coroutine[Any, Any, Any]]


async def caught(context: DurableContext, outside: Outside) -> list[str]:
    try:
        found = await context.step("lookup", outside.do("lookup"))
    except Flaky as error:
        assert (503, "later") == (error.code, error.hint)  # noqa: PT017 - on every attempt
        found = await context.step("fallback", outside.do("fallback"))
    return [found, await context.step("save", outside.do("save"))]


async def caught_before_a_wait(context: DurableContext, outside: Outside) -> list[str]:
    found = "nothing"
    with suppress(Flaky):
        found = await context.step("lookup", outside.do("lookup"))
    if found == "nothing":
        await context.sleep(HOUR_MS)
    return [found, await context.step("save", outside.do("save"))]


async def finally_around_a_wait(context: DurableContext, outside: Outside) -> Any:
    await context.step("take", outside.do("take"))
    try:
        return await context.await_event("ok", timeout_ms=HOUR_MS)
    finally:
        await context.step("release", outside.do("release"))


class Room:
    """A context manager whose ends are steps."""

    def __init__(self, context: DurableContext, outside: Outside) -> None:
        self.context, self.outside = context, outside

    async def __aenter__(self) -> None:
        await self.context.step("open", self.outside.do("open"))

    async def __aexit__(self, *_error: object) -> None:
        await self.context.step("close", self.outside.do("close"))


async def async_with_around_a_wait(context: DurableContext, outside: Outside) -> Any:
    async with Room(context, outside):
        return await context.await_event("ok", timeout_ms=HOUR_MS)


async def contextlib_around_a_wait(context: DurableContext, outside: Outside) -> Any:
    @asynccontextmanager
    async def room() -> AsyncGenerator[None, None]:
        await context.step("open", outside.do("open"))
        try:
            yield
        finally:
            await context.step("close", outside.do("close"))

    async with room(), room():
        await context.sleep(HOUR_MS)
    return await context.step("after", outside.do("after"))


async def a_generator_around_a_wait(context: DurableContext, outside: Outside) -> list[Any]:
    async def pieces() -> AsyncGenerator[Any, None]:
        try:
            yield await context.step("first", outside.do("first"))
            yield await context.await_event("ok", timeout_ms=HOUR_MS)
        finally:
            await context.step("end", outside.do("end"))

    async with aclosing(pieces()) as stream:
        return [piece async for piece in stream]


async def a_timeout_around_a_wait(context: DurableContext, outside: Outside) -> Any:
    try:
        async with asyncio.timeout(60):
            got = await context.await_event("ok", timeout_ms=HOUR_MS)
    except TimeoutError:
        got = "late"
    return [got, await context.step("after", outside.do("after"))]


async def a_short_timeout_around_a_wait(context: DurableContext, outside: Outside) -> Any:
    try:
        async with asyncio.timeout(1):
            got = await context.await_event("ok", timeout_ms=HOUR_MS)
    except TimeoutError:
        got = "late"
    return [got, await context.step("after", outside.do("after"))]


async def everything_caught_around_a_wait(context: DurableContext, outside: Outside) -> Any:
    try:
        got = await context.await_event("ok", timeout_ms=HOUR_MS)
    except BaseException:  # noqa: BLE001 - the shape that is tried
        got = await context.step("recover", outside.do("recover"))
    return [got, await context.step("after", outside.do("after"))]


async def everything_swallowed_around_a_wait(context: DurableContext, _outside: Outside) -> Any:
    got = "nothing"
    with suppress(BaseException):
        got = await context.await_event("ok", timeout_ms=HOUR_MS)
    return got


async def everything_renamed_around_a_wait(context: DurableContext, outside: Outside) -> Any:
    await context.step("take", outside.do("take"))
    try:
        return await context.await_event("ok", timeout_ms=HOUR_MS)
    except BaseException as error:
        raise ValueError("it went wrong") from error


async def steps_beside_a_wait_in_a_gather(context: DurableContext, outside: Outside) -> Any:
    long = context.step("long", outside.do("long", takes_s=60))
    got = await asyncio.gather(context.await_event("ok", timeout_ms=HOUR_MS), long)
    return [*got, await context.step("after", outside.do("after"))]


async def steps_beside_a_wait_in_a_group(context: DurableContext, outside: Outside) -> Any:
    async def prepare() -> list[str]:
        return [await context.step(name, outside.do(name, takes_s=20)) for name in ("one", "two", "three")]

    async with asyncio.TaskGroup() as group:
        got = group.create_task(context.await_event("ok", timeout_ms=HOUR_MS))
        prepared = group.create_task(prepare())
    return [got.result(), prepared.result(), await context.step("after", outside.do("after"))]


async def two_waits(context: DurableContext, outside: Outside) -> Any:
    async with asyncio.TaskGroup() as group:
        group.create_task(context.sleep(2 * HOUR_MS))
        got = group.create_task(context.await_event("ok", timeout_ms=HOUR_MS))
        group.create_task(context.step("beside", outside.do("beside")))
    return got.result()


async def a_step_that_is_cut_off(context: DurableContext, outside: Outside) -> Any:
    try:
        async with asyncio.timeout(1):
            got = await context.step("slow", outside.do("slow", takes_s=9 if "slow" in outside.down else 0.1))
    except TimeoutError:
        outside.down.discard("slow")
        got = await context.step("instead", outside.do("instead"))
    return [got, await context.step("after", outside.do("after"))]


async def a_group_that_fails(context: DurableContext, outside: Outside) -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(context.step("broken", outside.do("broken")))
            group.create_task(context.step("beside", outside.do("beside", takes_s=1)))
    except* Flaky:
        await context.step("undo", outside.do("undo"))
    return await context.step("after", outside.do("after"))


async def parallel_steps_that_fail(context: DurableContext, outside: Outside) -> Any:
    try:
        return await context.gather(
            StepCall(intent="beside", run=outside.do("beside", takes_s=1)),
            StepCall(intent="broken", run=outside.do("broken")),
        )
    except Flaky:
        return await context.step("undo", outside.do("undo"))


async def a_failure_that_leaves(context: DurableContext, outside: Outside) -> Any:
    return [await context.step(name, outside.do(name)) for name in ("one", "broken", "three")]


async def a_step_in_the_background(context: DurableContext, outside: Outside) -> Any:
    background = asyncio.ensure_future(context.step("pay", outside.do("pay", takes_s=3)))
    done = await context.step("answer", outside.do("answer"))
    return [done, background is not None]


SHAPES: list[tuple[Shape, set[str]]] = [
    (caught, set()),
    (caught, {"lookup"}),
    (caught_before_a_wait, {"lookup"}),
    (finally_around_a_wait, set()),
    (async_with_around_a_wait, set()),
    (contextlib_around_a_wait, set()),
    (a_generator_around_a_wait, set()),
    (a_timeout_around_a_wait, set()),
    (a_short_timeout_around_a_wait, set()),
    (everything_caught_around_a_wait, set()),
    (everything_swallowed_around_a_wait, set()),
    (everything_renamed_around_a_wait, set()),
    (steps_beside_a_wait_in_a_gather, set()),
    (steps_beside_a_wait_in_a_group, set()),
    (two_waits, set()),
    (a_step_that_is_cut_off, {"slow"}),
    (a_group_that_fails, {"broken"}),
    (parallel_steps_that_fail, {"broken"}),
    (a_failure_that_leaves, {"broken"}),
    (a_step_in_the_background, set()),
]


class World:
    """What outlives workers."""

    def __init__(self, shape: Shape, down: set[str], database: SqliteDatabase) -> None:
        self.shape = shape
        self.database = database
        self.down = set(down)
        self.effects: list[str] = []
        self.time_s = 0.0

    def live(self, fuse: Fuse, main: Callable[["World", Fuse], Coroutine[Any, Any, Any]]) -> Any:
        """Run *main* in a worker that dies with *fuse*."""
        loop = _MortalLoop(fuse, self.time_s)
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                return runner.run(loop.live(main(self, fuse)))
        finally:
            self.time_s = loop.time()

    async def attempt(self, fuse: Fuse) -> RunDurableResult[Any]:
        """Claim the run and do the task."""
        store = SqlRunStore(MortalDatabase(self.database, fuse))
        outside = Outside(fuse, self.effects, self.down)
        return await run_durable(
            RunDurableInput(
                run_id="run-1",
                manifest=manifest(),
                store=store,
                task_fn=lambda context: self.shape(context, outside),
                sources=default_sources(),
                lease_ms=LEASE_MS,
                log=lambda _event, _particulars: None,
            )
        )

    def rows(self) -> list[tuple[int, str, str]]:
        """Return the steps on record."""
        query = "SELECT step_index, intent, status FROM durable_steps ORDER BY step_index"
        return [tuple(row) for row in self.database._connection.execute(query)]


async def once(world: World, fuse: Fuse) -> RunDurableResult[Any]:
    return await world.attempt(fuse)


async def until_over(world: World, fuse: Fuse) -> Any:
    """Come back as a client and a cron do, until the run is completed; say ok after half an hour."""
    for _ in range(30):
        try:
            done = await world.attempt(fuse)
        except DurableRunLeaseHeldError as held:
            await asyncio.sleep(held.retry_after_ms / 1000 + 0.001)
            continue
        except (Flaky, ExceptionGroup):
            continue
        if not done.suspended:
            return done.result
        # A poke that comes too early changes nothing.
        assert (await world.attempt(fuse)).suspended
        await asyncio.sleep(HOUR_MS / 2_000)
        await SqlRunStore(world.database).emit_event("run-1", "ok", "ok")
        if not await SqlRunStore(world.database).due_runs(10):
            await asyncio.sleep(2 * HOUR_MS / 1_000)
    raise AssertionError("it is not over")


def walk(shape: Shape, down: set[str]) -> tuple[list[str], Any, Counter[str]]:
    """Return the places of the first attempt, and what comes of the run that nobody kills."""
    fuse = Fuse()
    with open_sqlite() as database:
        world = World(shape, down, database)
        with suppress(Flaky, ExceptionGroup):
            world.live(fuse, once)
    with open_sqlite() as database:
        world = World(shape, down, database)
        result = world.live(Fuse(), until_over)
        return fuse.places, result, Counter(world.effects)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(("shape", "down"), SHAPES, ids=[f"{shape.__name__}-{len(down)}" for shape, down in SHAPES])
def test_a_shape_survives_a_kill_at_every_place(shape: Shape, down: set[str]) -> None:
    """Each effect at most twice, a recorded one once; what is on record is replayed, also by the completed run."""
    places, undisturbed, effects = walk(shape, down)
    assert not [name for name, times in effects.items() if times > 1 and name not in {"open", "close"}]
    for point, place in enumerate(places):
        with open_sqlite() as database:
            world = World(shape, down, database)
            with suppress(Crash, Flaky, ExceptionGroup):
                world.live(Fuse(point), once)
            recorded = Counter(intent for _, intent, status in world.rows() if status == "completed")
            before = Counter(world.effects)
            result = world.live(Fuse(), until_over)
            after = Counter(world.effects)

            where = f"killed at place {point} of {len(places)}, {place}"
            rows = Counter(intent for _, intent, status in world.rows() if status == "completed")
            for name, times in after.items():
                lost = before[name] - recorded[name]  # done, but not recorded when the worker died
                assert times <= rows[name] + lost + (name in down or not rows[name]), f"{where}: {name} {times} times"
            assert result == undisturbed or down or shape is a_short_timeout_around_a_wait, where
            assert result == world.live(Fuse(), once).result, where
            assert after == Counter(world.effects), f"{where}: a replay had an effect"
    assert undisturbed is not None
