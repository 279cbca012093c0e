"""
Worlds for tasks of durable steps: a database, a list of effects and the time, in which workers come, die and go.

In each life one worker dies at one place, others go on until the run is over, and then it is replayed.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.context import DurableContext
from chatturn.durable.runner import RunDurableInput, RunDurableResult, default_sources, run_durable
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import DurableRunLeaseHeldError
from chatturn_testing.crashes import _MortalLoop
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.runs import LEASE_MS, manifest
from tests.support.turns import open_sqlite

__all__ = ["HOUR_MS", "Flaky", "Outside", "Shape", "World", "once", "survives_every_kill", "until_over", "walk"]

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


def survives_every_kill(
    shape: Shape, down: set[str], *, varies: bool = False, twice: frozenset[str] = frozenset()
) -> None:
    """
    Kill a worker at every place of the first attempt: each effect at most twice, and a recorded one once.

    Args:
        shape: The task.
        down: Services that fail at their first call.
        varies: Whether what comes of it depends on when the worker died.
        twice: Effects that the task has more than once.
    """
    places, undisturbed, effects = walk(shape, down)
    assert not [name for name, times in effects.items() if times > 1 and name not in twice], effects
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
            assert result == undisturbed or down or varies, where
            assert result == world.live(Fuse(), once).result, where
            assert after == Counter(world.effects), f"{where}: a replay had an effect"
    assert undisturbed is not None
