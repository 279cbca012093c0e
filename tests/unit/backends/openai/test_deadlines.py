"""The watchdog: which deadline ends which wait, and what it leaves alone."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple

import pytest

from chatturn.backends.openai.deadlines import UNLIMITED, Deadline, Watchdog
from chatturn.errors import BackendTimeout
from chatturn_testing.virtual_time import VirtualTimeLoop

Ts = TypeVarTuple("Ts")
IDLE = Deadline("idle_timeout_ms", 2_000, "further bytes")


def watchdog(total_ms: int = 0) -> Watchdog:
    return Watchdog(Deadline("total_timeout_ms", total_ms, "end of the answer"), backend="openai")


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_wait_ends_with_its_deadline() -> None:
    """A wait that outlasts its deadline raises a timeout that names it, exactly when it is over."""
    began_at = now()
    with (
        pytest.raises(BackendTimeout, match=r"no further bytes within 2000 ms \(idle_timeout_ms\)"),
        watchdog().limit(IDLE),
    ):
        await asyncio.sleep(60)

    assert now() - began_at == pytest.approx(2, abs=0.002)


async def test_every_wait_begins_anew() -> None:
    """Waits shorter than the deadline never add up to it."""
    dog = watchdog()
    for _ in range(10):
        with dog.limit(IDLE):
            await asyncio.sleep(1.9)
    dog.close()

    assert now() == pytest.approx(19)


async def test_the_total_ends_a_wait_that_had_time_left() -> None:
    """The call's whole time ends any wait, and is named when it does."""
    dog = watchdog(total_ms=5_000)
    with dog.limit(IDLE):
        await asyncio.sleep(1.5)
    with dog.limit(UNLIMITED):
        await asyncio.sleep(2)
    with pytest.raises(BackendTimeout, match="total_timeout_ms"), dog.limit(IDLE):
        await asyncio.sleep(60)

    assert now() == pytest.approx(5, abs=0.002)
    assert dog.remaining_s() <= 0.002


async def test_a_busy_consumer_is_never_interrupted() -> None:
    """Time spent outside a wait is not idle time; if it uses up the total, the next wait says so."""
    dog = watchdog(total_ms=30_000)
    with dog.limit(IDLE):
        await asyncio.sleep(1)
    await asyncio.sleep(20)
    with dog.limit(IDLE):
        await asyncio.sleep(1)
    await asyncio.sleep(20)

    with pytest.raises(BackendTimeout, match="total_timeout_ms"), dog.limit(IDLE):
        await asyncio.sleep(1)


async def test_a_shorter_deadline_after_a_longer_one_is_kept() -> None:
    """The pending timer of a long wait does not delay the end of a short one."""
    dog = watchdog()
    with dog.limit(Deadline("request_timeout_ms", 120_000, "headers")):
        await asyncio.sleep(1)
    with pytest.raises(BackendTimeout), dog.limit(IDLE):
        await asyncio.sleep(60)

    assert now() == pytest.approx(3, abs=0.002)


async def test_a_wait_that_begins_too_late_ends_at_once() -> None:
    """A wait that begins after the call's whole time is over does not get any more of it."""
    dog = watchdog(total_ms=1_000)
    await asyncio.sleep(5)
    with pytest.raises(BackendTimeout), dog.limit(IDLE):
        await asyncio.sleep(60)

    assert now() == 5


async def test_zero_is_no_deadline() -> None:
    """A deadline of 0 ms waits for ever."""
    with watchdog().limit(Deadline("idle_timeout_ms", 0, "bytes")):
        await asyncio.sleep(100_000)


async def test_a_cancellation_from_outside_is_passed_on() -> None:
    """Cancelling the task is no timeout, even at the moment of one; the task ends up cancelled."""

    async def wait() -> None:
        with watchdog().limit(IDLE):
            await asyncio.sleep(60)

    early, at_once = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.sleep(1)
    early.cancel()
    await asyncio.sleep(0.9999)
    asyncio.get_running_loop().call_at(2.0, at_once.cancel)
    await asyncio.wait([early, at_once])

    assert early.cancelled()
    assert at_once.cancelled()


async def test_a_timeout_leaves_no_cancellation_behind() -> None:
    """After a timeout the task goes on as if it had never been cancelled."""
    with pytest.raises(BackendTimeout), watchdog().limit(IDLE):
        await asyncio.sleep(60)
    task = asyncio.current_task()
    await asyncio.sleep(1)

    assert task is not None
    assert task.cancelling() == 0


async def test_an_error_that_the_deadline_provoked_is_a_timeout() -> None:
    """A connection that answers its cancellation with an error of its own does not hide the deadline."""

    async def fragile() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionError from None

    with pytest.raises(BackendTimeout), watchdog().limit(IDLE):
        await fragile()


async def test_an_error_within_time_is_itself() -> None:
    """An error before the deadline is passed on unchanged."""
    with pytest.raises(ConnectionError), watchdog().limit(IDLE):
        raise ConnectionError


def test_thousands_of_waits_share_one_timer() -> None:
    """A timer is set per idle period, not per wait: in the Worker each would cross into JavaScript."""
    timers = []

    class CountingLoop(VirtualTimeLoop):
        def call_at(
            self,
            when: float,
            callback: Callable[[*Ts], object],
            *args: *Ts,
            context: Context | None = None,
        ) -> asyncio.TimerHandle:
            timers.append(when)
            return super().call_at(when, callback, *args, context=context)

    async def waits() -> None:
        dog = watchdog(total_ms=600_000)
        for _ in range(5_000):
            with dog.limit(IDLE):
                await asyncio.sleep(0)
        dog.close()

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(waits())

    assert len(timers) == 1


@pytest.mark.parametrize("total_ms", [0, 10_000])
async def test_closing_takes_the_timer_back(total_ms: int) -> None:
    """A watchdog whose call is over does nothing any more."""
    dog = watchdog(total_ms)
    with dog.limit(IDLE):
        await asyncio.sleep(1)
    dog.close()
    dog.close()
    await asyncio.sleep(100)


def test_a_negative_deadline_is_refused_by_name() -> None:
    """A deadline below 0 fails at construction, and the message says which."""
    with pytest.raises(ValueError, match=r"^idle_timeout_ms "):
        Deadline("idle_timeout_ms", -1, "bytes")
