"""Ordinary Python around durable steps: each shape with a worker that dies at every await, write and effect."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest

from chatturn.durable.context import DurableContext, StepCall
from tests.support.shapes import HOUR_MS, Flaky, Outside, Shape, survives_every_kill


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


async def a_group_whose_other_member_cleans_up(context: DurableContext, outside: Outside) -> Any:
    async def careful() -> None:
        try:
            await context.step("long", outside.do("long", takes_s=60))
        finally:
            await context.step("clean up", outside.do("clean up"))

    told = "nothing"
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(careful())
            group.create_task(context.step("broken", outside.do("broken")))
    except* Flaky:
        told = await context.step("tell", outside.do("tell"))
    return [told, await context.step("after", outside.do("after"))]


async def a_task_that_calls_off_another(context: DurableContext, outside: Outside) -> Any:
    async def careful() -> None:
        try:
            await context.step("long", outside.do("long", takes_s=60))
        except asyncio.CancelledError:
            await context.step("clean up", outside.do("clean up"))
            raise

    beside = asyncio.ensure_future(careful())
    try:
        await context.step("broken", outside.do("broken", takes_s=1))
    except Flaky:
        beside.cancel()
        await asyncio.wait([beside])
        return "called off"
    return await asyncio.gather(beside, return_exceptions=True) and "whole"


async def a_gather_whose_other_member_cleans_up(context: DurableContext, outside: Outside) -> Any:
    async def careful() -> None:
        try:
            await context.step("long", outside.do("long", takes_s=60))
        except asyncio.CancelledError:
            await context.step("clean up", outside.do("clean up"))
            raise

    tasks = [asyncio.ensure_future(careful()), asyncio.ensure_future(context.step("broken", outside.do("broken")))]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in left:
        task.cancel()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    return [len(done), [type(each).__name__ for each in told], await context.step("after", outside.do("after"))]


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
    (a_group_whose_other_member_cleans_up, set()),
    (a_group_whose_other_member_cleans_up, {"broken"}),
    (a_task_that_calls_off_another, {"broken"}),
    (a_gather_whose_other_member_cleans_up, {"broken"}),
    (parallel_steps_that_fail, {"broken"}),
    (a_failure_that_leaves, {"broken"}),
    (a_step_in_the_background, set()),
]


@pytest.mark.slow
@pytest.mark.sqlite_only
@pytest.mark.parametrize(("shape", "down"), SHAPES, ids=[f"{shape.__name__}-{len(down)}" for shape, down in SHAPES])
def test_a_shape_survives_a_kill_at_every_place(shape: Shape, down: set[str]) -> None:
    """Each effect at most twice, a recorded one once; what is on record is replayed, also by the completed run."""
    survives_every_kill(shape, down, varies=shape is a_short_timeout_around_a_wait, twice=frozenset({"open", "close"}))
