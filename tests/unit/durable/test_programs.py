"""
Programs as people write them, in styles of ordinary asynchronous Python, killed at every await, write and effect.

Each effect is had once; or the program is refused with a sentence that says what to write instead.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from chatturn.durable.context import DurableContext
from chatturn.errors import DurableRunDivergenceError
from chatturn_testing.faults import Fuse
from tests.support.shapes import HOUR_MS, Flaky, Outside, Shape, World, once, survives_every_kill
from tests.support.turns import open_sqlite


async def a_loop_that_backs_off(context: DurableContext, outside: Outside) -> Any:
    """Tries again after a pause that doubles; the last pauses are too long for a worker."""
    for attempt in range(4):
        try:
            paid = await context.step(f"pay {attempt}", outside.do(f"pay {attempt}"))
            break
        except Flaky:
            await context.sleep(4_000 << attempt)
    else:
        paid = "never"
    return [paid, await context.step("receipt", outside.do("receipt"))]


async def a_generator_that_is_left_early(context: DurableContext, outside: Outside) -> Any:
    """Reads pages until one has what it looks for."""

    async def pages() -> AsyncGenerator[str, None]:
        try:
            for number in range(5):
                yield await context.step(f"page {number}", outside.do(f"page {number}"))
        finally:
            await context.step("close", outside.do("close"))

    async with aclosing(pages()) as stream:
        async for page in stream:
            if page == "page 2":
                break
    return await context.step("use", outside.do("use"))


async def a_saga(context: DurableContext, outside: Outside) -> Any:
    """Undoes what it has done, the last first, where something fails."""

    @asynccontextmanager
    async def compensated(name: str) -> AsyncGenerator[str, None]:
        done = await context.step(name, outside.do(name))
        try:
            yield done
        except Flaky:
            await context.step(f"undo {name}", outside.do(f"undo {name}"))
            raise

    try:
        async with compensated("flight"), compensated("hotel"):
            await context.step("car", outside.do("car"))
    except Flaky:
        return await context.step("tell", outside.do("tell"))
    return "booked"


@dataclass
class Order:
    id: str
    cents: int


async def a_dataclass_by_way_of_a_dict(context: DurableContext, outside: Outside) -> Any:
    """A step's result is JSON; the class is made of it behind the step."""

    async def load() -> dict[str, Any]:
        await outside.do("load")()
        return asdict(Order("A1", 500))

    order = Order(**await context.step("load", load))
    return [order.cents, await context.step("pay", outside.do("pay"))]


async def a_timeout_around_steps(context: DurableContext, outside: Outside) -> Any:
    """The second of three steps takes too long, at first."""
    done = []
    try:
        async with asyncio.timeout(5):
            for name in ("one", "slow", "three"):
                takes_s = 60 if name in outside.down else 0.1
                outside.down.discard(name) if name == "slow" and takes_s < 1 else None
                done.append(await context.step(name, outside.do(name, takes_s=takes_s)))
    except TimeoutError:
        outside.down.discard("slow")
        done.append(await context.step("instead", outside.do("instead")))
    return [*done, await context.step("after", outside.do("after"))]


async def nested_gathers(context: DurableContext, outside: Outside) -> Any:
    """What fails is a result like any other."""

    def pair(one: str, other: str) -> Awaitable[list[Any]]:
        steps = (context.step(name, outside.do(name, takes_s=len(name))) for name in (one, other))
        return asyncio.gather(*steps, return_exceptions=True)

    told = await asyncio.gather(pair("aaa", "b"), pair("broken", "dd"))
    found = [str(each) for of_pair in told for each in of_pair]
    return [*found, await context.step("after", outside.do("after"))]


async def nested_groups(context: DurableContext, outside: Outside) -> Any:
    """The inner group fails, and with it the outer one; what handles that is a step."""
    try:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(context.step("beside", outside.do("beside", takes_s=3)))
            async with asyncio.TaskGroup() as inner:
                inner.create_task(context.step("broken", outside.do("broken", takes_s=1)))
                inner.create_task(context.step("also", outside.do("also", takes_s=2)))
    except* Flaky as failed:
        await context.step("tell", outside.do("tell"))
        assert failed.exceptions  # noqa: PT017 - on every attempt
    return await context.step("after", outside.do("after"))


async def a_cached_helper(context: DurableContext, outside: Outside) -> Any:
    """Asks for each rate once, whoever wants it."""

    @functools.cache
    def rate(currency: str) -> "asyncio.Task[str]":
        return asyncio.ensure_future(context.step(currency, outside.do(currency)))

    rates = [await rate(currency) for currency in ("EUR", "CHF", "EUR", "CHF")]
    return [*rates, await context.step("after", outside.do("after"))]


async def an_exit_stack(context: DurableContext, outside: Outside) -> Any:
    """Gives back what it has taken, the last first, also where a wait comes between."""
    async with AsyncExitStack() as stack:
        for name in ("lock", "file"):
            await context.step(name, outside.do(name))
            stack.push_async_callback(context_step(context, outside, f"free {name}"))
        got = await context.await_event("ok", timeout_ms=HOUR_MS)
    return [got, await context.step("after", outside.do("after"))]


def context_step(context: DurableContext, outside: Outside, name: str) -> Callable[[], Awaitable[str]]:
    """Return a function that does a step when it is called."""

    async def do() -> str:
        return await context.step(name, outside.do(name))

    return do


async def a_recursion(context: DurableContext, outside: Outside) -> Any:
    """Walks a tree."""

    async def walk(name: str, depth: int) -> int:
        await context.step(name, outside.do(name))
        if not depth:
            return 1
        return 1 + sum([await walk(f"{name}{number}", depth - 1) for number in range(2)])

    return await walk("n", 2)


async def a_poll(context: DurableContext, outside: Outside) -> Any:
    """Asks again until it is ready; between the asking it sleeps, briefly and for long."""
    number = 0
    while await context.step(f"poll {number}", outside.do(f"poll {number}")) != "poll 3":
        await context.sleep((1_000, HOUR_MS, 10)[number])
        number += 1
    return await context.step("after", outside.do("after"))


async def whichever_comes_first(context: DurableContext, outside: Outside) -> Any:
    """Goes on with each as it is done."""
    names = {"slow": 3.0, "quick": 1.0, "middle": 2.0}
    steps = [context.step(name, outside.do(name, takes_s=takes_s)) for name, takes_s in names.items()]
    done = []
    for step in asyncio.as_completed(steps):
        name = await step
        done.append(await context.step(f"after {name}", outside.do(f"after {name}")))
    return done


async def the_first_of_a_set(context: DurableContext, outside: Outside) -> Any:
    """Waits for the first, uses it, and then for the others."""
    names = {"slow": 3.0, "quick": 1.0, "middle": 2.0}
    left = {
        asyncio.ensure_future(context.step(name, outside.do(name, takes_s=takes_s))) for name, takes_s in names.items()
    }
    used = []
    while left:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        used += [await context.step(f"use {task.result()}", outside.do(f"use {task.result()}")) for task in done]
    return used


async def a_race_whose_loser_is_cancelled(context: DurableContext, outside: Outside) -> Any:
    """The first answer wins."""
    racers = [
        asyncio.ensure_future(context.step(name, outside.do(name, takes_s=takes_s)))
        for name, takes_s in (("slow", 50.0), ("quick", 1.0))
    ]
    done, left = await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    return [*(task.result() for task in done), await context.step("after", outside.do("after"))]


async def a_semaphore(context: DurableContext, outside: Outside) -> Any:
    """Two at a time, each one step."""
    two = asyncio.Semaphore(2)

    async def work(name: str, takes_s: float) -> str:
        async with two:
            return await context.step(name, outside.do(name, takes_s=takes_s))

    done = await asyncio.gather(work("one", 3), work("two", 1), work("three", 2), work("four", 1))
    return [*done, await context.step("after", outside.do("after"))]


async def a_shielded_step(context: DurableContext, outside: Outside) -> Any:
    """Is waited for by somebody impatient, and let finish all the same."""
    paying = asyncio.ensure_future(context.step("pay", outside.do("pay", takes_s=3)))
    try:
        async with asyncio.timeout(1):
            paid = await asyncio.shield(paying)
    except TimeoutError:
        paid = await paying
    return [paid, await context.step("after", outside.do("after"))]


async def a_cancelled_task(context: DurableContext, outside: Outside) -> Any:
    """A helper that is called off, and cleans up."""

    async def helper() -> None:
        try:
            await context.step("long", outside.do("long", takes_s=60))
        except asyncio.CancelledError:
            await context.step("clean up", outside.do("clean up"))
            raise

    task = asyncio.ensure_future(helper())
    await context.step("look", outside.do("look"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return await context.step("after", outside.do("after"))


async def a_step_inside_except_star(context: DurableContext, outside: Outside) -> Any:
    """Each kind of failure has a step of its own."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(context.step("broken", outside.do("broken")))
            group.create_task(context.step("beside", outside.do("beside", takes_s=1)))
    except* Flaky:
        await context.step("mend", outside.do("mend"))
    except* TimeoutError:
        await context.step("wait", outside.do("wait"))
    return await context.step("after", outside.do("after"))


async def work_handed_to_a_queue(context: DurableContext, outside: Outside) -> Any:
    """One producer, one consumer; each result is used as it comes."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    async def produce() -> None:
        await queue.put(await context.step("made", outside.do("made", takes_s=1)))
        await queue.put(None)

    producing = asyncio.ensure_future(produce())
    used = []
    while (item := await queue.get()) is not None:
        used.append(await context.step(f"use {item}", outside.do(f"use {item}")))
    await producing
    return used


PROGRAMS: list[tuple[Shape, set[str]]] = [
    (a_loop_that_backs_off, set()),
    (a_loop_that_backs_off, {"pay 0", "pay 1"}),
    (a_generator_that_is_left_early, set()),
    (a_saga, set()),
    (a_saga, {"car"}),
    (a_dataclass_by_way_of_a_dict, set()),
    (a_timeout_around_steps, set()),
    (a_timeout_around_steps, {"slow"}),
    (nested_gathers, {"broken"}),
    (nested_groups, {"broken"}),
    (a_cached_helper, set()),
    (an_exit_stack, set()),
    (a_recursion, set()),
    (a_poll, set()),
    (whichever_comes_first, set()),
    (the_first_of_a_set, set()),
    (a_race_whose_loser_is_cancelled, set()),
    (a_semaphore, set()),
    (a_shielded_step, set()),
    (a_cancelled_task, set()),
    (a_step_inside_except_star, {"broken"}),
    (work_handed_to_a_queue, set()),
]


@pytest.mark.slow
@pytest.mark.sqlite_only
@pytest.mark.parametrize(("program", "down"), PROGRAMS, ids=[f"{each.__name__}-{len(down)}" for each, down in PROGRAMS])
def test_a_program_survives_a_kill_at_every_place(program: Shape, down: set[str]) -> None:
    """Each effect at most twice, a recorded one once; what is on record is replayed, also by the completed run."""
    survives_every_kill(program, down)


# What cannot be made safe


async def two_workers_that_go_on(context: DurableContext, outside: Outside) -> Any:
    async def work(name: str) -> None:
        for number in range(3):
            await context.step(f"{name}{number}", outside.do(f"{name}{number}"))

    await asyncio.gather(work("a"), work("b"))


async def a_dataclass_as_a_result(context: DurableContext, outside: Outside) -> Any:
    async def load() -> Order:
        await outside.do("load")()
        return Order("A1", 500)

    return await context.step("load", load)


async def a_step_in_a_step(context: DurableContext, outside: Outside) -> Any:
    async def outer() -> str:
        return await context.step("inner", outside.do("inner"))

    return await context.step("outer", outer)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("program", "error", "sentence"),
    [
        (
            two_workers_that_go_on,
            DurableRunDivergenceError,
            "make each task one step, or await them one after the other",
        ),
        (a_dataclass_as_a_result, TypeError, "dataclasses.asdict"),
        (a_step_in_a_step, DurableRunDivergenceError, "inside"),
    ],
)
def test_what_cannot_be_made_safe_is_refused_with_what_to_write(
    program: Shape, error: type[Exception], sentence: str
) -> None:
    """At the first attempt, and at every other."""
    with open_sqlite() as database:
        world = World(program, set(), database)
        for _ in range(2):
            with pytest.raises(error, match=sentence):
                world.live(Fuse(), once)
