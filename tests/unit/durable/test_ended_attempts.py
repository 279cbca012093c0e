"""Attempts that are ended from outside: they do no more steps on their way out, and nothing of that is final."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from chatturn.durable.context import DurableContext, StepCall
from chatturn.durable.records import RunStatus
from chatturn.errors import DurableRunDivergenceError
from chatturn_testing.faults import Fuse
from tests.support.faults import FaultyDatabase
from tests.support.shapes import Outside, Shape, World, once, until_over
from tests.support.turns import open_sqlite
from tests.unit.durable.test_runner import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A bench over an empty database."""
    with open_sqlite() as database:
        yield Bench(FaultyDatabase(database))


async def in_a_finally(context: DurableContext, outside: Outside) -> Any:
    try:
        await context.step("pay", outside.do("pay", takes_s=5))
    finally:
        await context.step("release", outside.do("release"))
    return await context.step("after", outside.do("after"))


async def in_an_async_with(context: DurableContext, outside: Outside) -> Any:
    @asynccontextmanager
    async def room() -> AsyncGenerator[None, None]:
        await context.step("open", outside.do("open"))
        try:
            yield
        finally:
            await context.step("close", outside.do("close"))

    async with room():
        await asyncio.sleep(5)
    return await context.step("after", outside.do("after"))


async def where_everything_is_caught(context: DurableContext, outside: Outside) -> Any:
    try:
        paid = await context.step("pay", outside.do("pay", takes_s=5))
    except BaseException:  # noqa: BLE001 - the shape that is tried
        paid = await context.step("recover", outside.do("recover"))
    return [paid, await context.step("after", outside.do("after"))]


async def where_it_is_swallowed(context: DurableContext, outside: Outside) -> Any:
    paid = None
    with suppress(asyncio.CancelledError):
        paid = await context.step("pay", outside.do("pay", takes_s=5))
    return [paid]


async def in_a_gather(context: DurableContext, outside: Outside) -> Any:
    async def guarded() -> Any:
        try:
            return await context.step("one", outside.do("one", takes_s=5))
        finally:
            await context.step("release", outside.do("release"))

    return await asyncio.gather(guarded(), context.step("two", outside.do("two", takes_s=5)))


async def in_a_group(context: DurableContext, outside: Outside) -> Any:
    async def guarded() -> Any:
        try:
            return await context.step("one", outside.do("one", takes_s=5))
        except asyncio.CancelledError:
            await context.step("undo", outside.do("undo"))
            raise

    async with asyncio.TaskGroup() as group:
        done = [group.create_task(guarded()), group.create_task(context.step("two", outside.do("two", takes_s=5)))]
    return [task.result() for task in done]


async def inside_its_own_timeout(context: DurableContext, outside: Outside) -> Any:
    try:
        async with asyncio.timeout(60):
            paid = await context.step("pay", outside.do("pay", takes_s=5))
    except TimeoutError:
        paid = await context.step("instead", outside.do("instead"))
    finally:
        await context.step("release", outside.do("release"))
    return [paid]


async def in_a_generator(context: DurableContext, outside: Outside) -> Any:
    async def pages() -> AsyncGenerator[Any, None]:
        try:
            yield await context.step("page", outside.do("page"))
            yield await context.step("next", outside.do("next", takes_s=5))
        finally:
            await context.step("end", outside.do("end"))

    return [page async for page in pages()]


async def behind_a_background_task(context: DurableContext, outside: Outside) -> Any:
    beside = asyncio.ensure_future(context.step("beside", outside.do("beside", takes_s=7)))
    await context.step("one", outside.do("one", takes_s=5))
    return await beside


CUT_OFF: list[Shape] = [
    in_a_finally,
    in_an_async_with,
    where_everything_is_caught,
    where_it_is_swallowed,
    in_a_gather,
    in_a_group,
    inside_its_own_timeout,
    in_a_generator,
    behind_a_background_task,
]


MOMENTS_S = (0.0, 0.01, 1.0, 5.01)
TURNS = range(0, 12, 2)


async def _cut_off(world: World, fuse: Fuse, moment_s: float, turns: int) -> bool:
    """Cancel the attempt, as SIGINT or a client that stops does; say whether it was still under way."""
    attempt = asyncio.ensure_future(world.attempt(fuse))
    await asyncio.sleep(moment_s)
    for _ in range(turns):
        await asyncio.sleep(0)
    if attempt.done():
        return False
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert {asyncio.current_task()} == asyncio.all_tasks(), "a task was left behind"
    return True


@pytest.mark.slow
@pytest.mark.sqlite_only
@pytest.mark.parametrize("shape", CUT_OFF, ids=lambda shape: shape.__name__)
def test_an_attempt_that_is_cancelled_from_outside_does_nothing_more(shape: Shape) -> None:
    """At any turn of the loop: no step begins on the way out, none is final, and the next attempt goes on as if never."""
    with open_sqlite() as database:
        undisturbed = World(shape, set(), database)
        result = undisturbed.live(Fuse(), until_over)
    was_cut = 0
    for moment_s, turns in itertools.product(MOMENTS_S, TURNS):
        with open_sqlite() as database:
            world, where = World(shape, set(), database), f"cut off after {moment_s} s and {turns} turns"
            if not world.live(Fuse(), partial(_cut_off, moment_s=moment_s, turns=turns)):
                continue
            was_cut += 1
            assert world.effects == undisturbed.effects[: len(world.effects)], where
            assert "failed" not in {status for _, _, status in world.rows()}, where
            assert result == world.live(Fuse(), until_over), where
            assert result == world.live(Fuse(), once).result, where
            assert set(world.effects) == set(undisturbed.effects), where
    assert was_cut > len(TURNS)


async def test_a_timeout_of_its_own_is_still_the_tasks(bench: Bench) -> None:
    """And a group's cancellation of its tasks."""

    async def task(context: DurableContext) -> Any:
        try:
            async with asyncio.timeout(1):
                await context.step("slow", _sleeps)
        except TimeoutError:
            return await context.step("instead", bench.effect("instead"))

    assert "instead" == (await bench.run(task)).result
    assert "instead" == (await bench.run(task)).result
    assert ["instead"] == bench.effects


async def test_what_a_task_has_left_behind_ends_with_it(bench: Bench) -> None:
    """Behind its end nothing is done in the run's name."""

    async def beside(context: DurableContext) -> None:
        await context.step("first", bench.effect("first"))
        await asyncio.sleep(60)
        await context.step("second", bench.effect("second"))

    kept: list[Any] = []

    async def task(context: DurableContext) -> str:
        kept.append(asyncio.ensure_future(beside(context)))
        await asyncio.sleep(1)
        return "done"

    assert "done" == (await bench.run(task)).result
    assert kept[0].cancelled()
    assert ["first"] == bench.effects


FORGOTTEN: dict[str, Callable[[Bench, DurableContext], Any]] = {
    "pay": lambda bench, context: context.step("pay", bench.effect("pay")),
    "sleep": lambda _bench, context: context.sleep(1_000),
    "event:ok": lambda _bench, context: context.await_event("ok"),
    "emit:ok": lambda _bench, context: context.emit_event("ok", 1),
    "now": lambda _bench, context: context.now(),
    "uuid": lambda _bench, context: context.uuid(),
    "random": lambda _bench, context: context.random(),
    "gather": lambda bench, context: context.gather(StepCall(intent="pay", run=bench.effect("pay"))),
}


@pytest.mark.parametrize("what", FORGOTTEN)
@pytest.mark.parametrize("where", ["in the middle", "all there is", "as the result"])
async def test_a_step_that_nobody_awaits_is_an_error_that_names_it(bench: Bench, what: str, where: str) -> None:
    """On every attempt; the run is not completed, and Python has nothing to warn of."""

    async def task(context: DurableContext) -> Any:
        forgotten = FORGOTTEN[what](bench, context)
        if where == "in the middle":
            await context.step("answer", bench.effect("answer"))
        return forgotten if where == "as the result" else None

    for _ in range(2):
        with pytest.raises(DurableRunDivergenceError, match=f"without awaiting '{what}'.*write await before it"):
            await bench.run(task)
    record = await bench.store.load_run("run-1")

    assert record is not None
    assert RunStatus.FAILED is record.status
    assert "pay" not in bench.effects


async def test_a_step_that_was_called_off_before_it_began_was_awaited(bench: Bench) -> None:
    """As those are that a group had just been given when it failed; and many steps are nothing special."""

    async def task(context: DurableContext) -> str:
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(context.step("one", bench.effect("one")))
                raise ValueError
        steps = [context.step(str(number), bench.effect(str(number))) for number in range(200)]
        await asyncio.gather(*steps)
        return "done"

    assert "done" == (await bench.run(task)).result
    assert "one" not in bench.effects
    assert 200 == len(bench.effects)


async def _sleeps() -> None:
    await asyncio.sleep(100)


async def test_context_variables_that_a_task_sets_are_seen_behind_it(bench: Bench) -> None:
    """As if it were awaited where it is called; also where it was cut off."""
    variable = ContextVar("variable", default=0)

    async def task(context: DurableContext) -> None:
        variable.set(variable.get() + 1)
        await context.step("slow", _sleeps)

    await bench.run(task)
    assert 1 == variable.get()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await bench.run(task, run_id="run-2")
    assert 2 == variable.get()


async def test_a_step_behind_the_end_of_its_task_is_an_error(bench: Bench) -> None:
    """Whoever has kept the context may have caught no more than exceptions."""
    kept: list[DurableContext] = []

    async def task(context: DurableContext) -> None:
        kept.append(context)

    await bench.run(task)
    with pytest.raises(DurableRunDivergenceError, match="after the end of its task"):
        await kept[0].step("late", bench.effect("late"))
    assert [] == bench.effects
