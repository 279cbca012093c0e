"""A stream in a task of its own, and the steps of a task that is not recorded."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from chatturn.agent_runtime.tasks.pump import Pump
from chatturn.agent_runtime.tasks.task_steps import HookFailed, TaskAborted, TaskSteps
from tests.support.agent_tasks import loop_time

Put = Callable[[int], Awaitable[None]]


async def test_items_come_in_their_order_and_then_the_end() -> None:
    async def produce(put: Put) -> None:
        for number in range(5):
            await put(number)

    async with Pump(produce) as pump:
        assert [0, 1, 2, 3, 4] == [item async for item in pump]


async def test_the_producer_is_at_most_one_item_ahead() -> None:
    made: list[int] = []

    async def produce(put: Put) -> None:
        for number in range(100):
            made.append(number)
            await put(number)

    async with Pump(produce) as pump:
        assert 0 == await anext(pump)
        await asyncio.sleep(60)

    assert len(made) <= 3


class Other(BaseException):
    """No Exception, as a death is none."""


@pytest.mark.parametrize("error", [ValueError("no"), Other()])
async def test_what_the_producer_raises_comes_after_its_items(error: BaseException) -> None:
    async def produce(put: Put) -> None:
        await put(1)
        raise error

    async with Pump(produce) as pump:
        assert 1 == await anext(pump)
        with pytest.raises(type(error)):
            await anext(pump)


async def test_a_producer_that_cancels_itself_is_told_and_does_not_hang() -> None:
    async def produce(_: Put) -> None:
        raise asyncio.CancelledError

    async with Pump(produce) as pump:
        with pytest.raises(RuntimeError, match="cancelled by itself"):
            await anext(pump)


async def test_whoever_leaves_waits_until_the_producer_has_let_go() -> None:
    let_go: list[float] = []

    async def produce(put: Put) -> None:
        try:
            await put(1)
            await asyncio.sleep(3_600)
        finally:
            await asyncio.sleep(1)
            let_go.append(asyncio.get_running_loop().time())

    async with Pump(produce) as pump:
        await anext(pump)

    assert [1.0] == let_go


@pytest.mark.parametrize("error", [ValueError("no"), Other(), None])
async def test_whoever_leaves_does_not_wait_for_what_nobody_takes(error: BaseException | None) -> None:
    """A producer whose clean-up fails, or that goes on, while an item lies there for a reader who has left."""
    goes_on: list[int] = []

    async def produce(put: Put) -> None:
        try:
            for number in range(100):
                await put(number)
        except asyncio.CancelledError:
            if error is not None:
                raise error from None
        for number in range(100):
            goes_on.append(number)
            await put(number)

    async with asyncio.timeout(60):
        async with Pump(produce) as pump:
            await anext(pump)
            await asyncio.sleep(1)

    assert len(goes_on) <= 1


async def test_an_abort_cancels_what_runs_and_waits_for_it() -> None:
    abort, ended = asyncio.Event(), list[str]()

    async def slow() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append("slow")

    asyncio.get_running_loop().call_later(1, abort.set)
    with pytest.raises(TaskAborted):
        await TaskSteps(abort=abort, now=loop_time).unrecorded(slow)
    assert (["slow"], 1.0) == (ended, asyncio.get_running_loop().time())


async def test_a_hook_s_failure_is_told_from_an_abort() -> None:
    async def fails() -> None:
        raise ValueError("no")

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    steps = TaskSteps(abort=asyncio.Event(), now=loop_time)
    with pytest.raises(HookFailed, match="ValueError: no"):
        await steps.unrecorded(fails)
    with pytest.raises(RuntimeError, match="cancelled by itself"):
        await steps.unrecorded(cancels_itself)
