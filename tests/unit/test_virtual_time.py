"""The clock that all other asynchronous tests rely on."""

import asyncio
from itertools import count

import pytest

from chatturn_testing.virtual_time import Deadlock, run


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_waiting_takes_no_time_but_moves_the_clock() -> None:
    """A sleep ends as soon as nothing else can happen, exactly when it should by the loop's clock."""
    began_at = now()
    await asyncio.sleep(120)

    assert now() - began_at == 120


async def test_timers_fire_in_their_order() -> None:
    """Concurrent tasks interleave by the times they wait for, not by chance."""
    order = []

    async def after(seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append(seconds)

    async with asyncio.TaskGroup() as tasks:
        for seconds in (3.0, 1.0, 2.0):
            tasks.create_task(after(seconds))

    assert order == [1.0, 2.0, 3.0]


async def test_time_stands_still_while_somebody_can_go_on() -> None:
    """Tasks that only yield do not move the clock."""
    began_at = now()
    for _ in range(100):
        await asyncio.sleep(0)

    assert began_at == now()


def test_a_deadlock_is_reported_with_its_place() -> None:
    """A task that waits for what cannot happen fails at once, and the message says where it stands."""

    async def wait_for_nobody() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"test_virtual_time\.py:\d+"):
        run(wait_for_nobody())


def test_an_endless_heartbeat_is_a_deadlock() -> None:
    """Timers that only set themselves again do not keep a test alive for ever."""

    async def beat() -> None:
        for _ in count():
            await asyncio.sleep(3_600)

    with pytest.raises(Deadlock, match="beat"):
        run(beat())
