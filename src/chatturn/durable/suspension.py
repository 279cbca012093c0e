"""
How a task that waits for long leaves its worker, and what its steps do meanwhile.

A wait that takes too long suspends the run: `Suspended` leaves the task, worker and lease are released, and a later
claim replays the task up to the wait.  Whatever the task does on the way out (``finally``, ``async with``,
``except BaseException``) is done again by that replay, where it belongs, behind the wait.  So from the moment of the
suspension on every further step and wait of the attempt suspends as well, before its effect.

Steps that run beside a wait are let finish first, and what follows on them as well: the run is suspended once
nothing but waits is left.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from chatturn.durable.records import Wait
from chatturn.errors import DurableRunDivergenceError

__all__ = ["Suspended", "Work", "ended_by_wait", "ungrouped_waits"]

_TURNS_TO_GO_ON: Final = 5
"""Turns of the event loop in which a task that has got a step's result asks for the next one."""

_LOOK_AGAIN_S: Final = 1.0


class Suspended(BaseException):
    """
    The task waits for longer than a worker should; not an Exception, so that no task's handler swallows it.

    Attributes:
        wait: For what.
    """

    def __init__(self, wait: Wait) -> None:
        super().__init__(wait)
        self.wait = wait


@dataclass(slots=True, eq=False)
class Work:
    """
    What one attempt has under way.

    Attributes:
        suspended: Why it does no more; None while it goes on.
    """

    run_id: str
    suspended: Suspended | None = None
    _steps: "dict[asyncio.Task[object] | None, int]" = field(default_factory=dict)
    _waits: dict[int, Wait] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def require_going_on(self) -> None:
        """Raise `Suspended` again, if the attempt is."""
        if self.suspended is not None:
            raise Suspended(self.suspended.wait)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Let a ``with`` block be a step under way, its record included."""
        task = asyncio.current_task()
        self._steps[task] = self._steps.get(task, 0) + 1
        try:
            yield
        finally:
            self._steps[task] -= 1
            if not self._steps[task]:
                del self._steps[task]
            self._changed.set()

    @contextmanager
    def wait(self, wait: Wait) -> Iterator[None]:
        """Let a ``with`` block be a wait under way."""
        self._waits[wait.step_index] = wait
        try:
            yield
        finally:
            del self._waits[wait.step_index]

    def suspend(self) -> Suspended:
        """
        Suspend the attempt, and return what leaves the task.

        Of several waits, for the one that is over first; an event that any of them waits for ends them all.
        """
        first = min(self._waits.values(), key=lambda wait: wait.wake_at)
        keys = [wait.key for wait in (first, *self._waits.values()) if wait.key is not None]
        wait = Wait(step_index=first.step_index, key=keys[0] if keys else None, wake_at=first.wake_at)
        self.suspended = self.suspended or Suspended(wait)
        return Suspended(self.suspended.wait)

    async def rest(self, timeout_ms: float | None = None) -> bool:
        """
        Wait until no step is under way, and nobody asks for one on having another's result.

        Args:
            timeout_ms: After which it is enough; None, never.

        Returns:
            Whether nothing was under way in the first place.

        Raises:
            DurableRunDivergenceError: A step waits for the caller, which would wait for it.
        """
        loop, rested = asyncio.get_running_loop(), True
        until = None if timeout_ms is None else loop.time() + timeout_ms / 1000
        while await self._busy():
            rested = False
            self._require_no_cycle()
            left_s = _LOOK_AGAIN_S if until is None else min(_LOOK_AGAIN_S, until - loop.time())
            if left_s <= 0:
                break
            self._changed.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return rested

    async def _busy(self) -> bool:
        for _ in range(_TURNS_TO_GO_ON):
            if self._steps or self.suspended is not None:
                break
            await asyncio.sleep(0)
        return bool(self._steps) and self.suspended is None

    def _require_no_cycle(self) -> None:
        """Refuse a step that awaits the task that is about to wait for it."""
        here, looked_at, left = asyncio.current_task(), set(), list(self._steps)
        while left:
            awaiting = left.pop()
            if awaiting is None or awaiting in looked_at:
                continue
            looked_at.add(awaiting)
            # What a task awaits is an attribute of asyncio's own; where there is none, nothing is found out.
            awaited = getattr(awaiting, "_fut_waiter", None)
            futures = [awaited, *getattr(awaited, "_children", ())]
            if here in futures:
                raise DurableRunDivergenceError("a step awaits the wait that waits for it", run_id=self.run_id)
            left += [future for future in futures if isinstance(future, asyncio.Task)]


@contextmanager
def ungrouped_waits() -> Iterator[None]:
    """
    Let a wait inside an `asyncio.TaskGroup` suspend the run as any other does.

    Of several, the one that is over first.  What failed beside a wait leaves without it, and fails the run.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        waits, others = group.split(Suspended)
        if waits is None:
            raise
        raise (others or min(_leaves(waits), key=lambda suspended: suspended.wait.wake_at)) from group


@contextmanager
def ended_by_wait(suspended: Callable[[], Suspended | None]) -> Iterator[None]:
    """
    Let a suspended run leave as that, whatever the task made of it on its way out.

    A cancellation and a closed generator are not the task's, and leave as they are.  So does what failed beside a
    wait in an `asyncio.TaskGroup`.
    """
    wait: Suspended | None
    try:
        yield
    except BaseExceptionGroup as group:
        waits, others = group.split(Suspended)
        wait = suspended()
        if waits is not None and others is not None:
            raise others from group
        if wait is None:
            raise
        raise wait from group
    except Exception as error:
        wait = suspended()
        if wait is None:
            raise
        raise wait from error
    wait = suspended()
    if wait is not None:
        raise wait


def _leaves(waits: BaseExceptionGroup[Suspended]) -> list[Suspended]:
    leaves: list[Suspended] = []
    for wait in waits.exceptions:
        leaves += _leaves(wait) if isinstance(wait, BaseExceptionGroup) else [wait]
    return leaves
