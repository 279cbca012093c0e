"""
How an attempt stops before its task is done, and what its steps do meanwhile.

A wait that takes too long suspends the run: `Suspended` leaves the task, worker and lease are released, and a later
claim replays the task up to the wait.  Whatever the task does on the way out (``finally``, ``async with``,
``except BaseException``) is done again by that replay, where it belongs, behind the wait.  So from the moment of the
suspension on every further step and wait of the attempt suspends as well, before its effect.

The same holds where the engine ends the attempt: its stream has said that it failed, it was stopped, its lease or its
worker is gone.  The next attempt may take another way, on which a step of the way out would stand where another one
belongs.  So every further step raises `Stopped`, and what ended the attempt is what leaves it.

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

__all__ = ["Stopped", "Suspended", "Work", "leaving_as", "ungrouped_waits"]

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


class Stopped(BaseException):
    """The attempt is over, and does no further step; not an Exception, so that no task's handler swallows it."""


@dataclass(slots=True, eq=False)
class Work:
    """
    What one attempt has under way.

    Attributes:
        run_id: The attempt's run.
        ended: Returns why the attempt is over, where that is known elsewhere; None while it goes on.
        is_done: Whether it does no more steps, for whichever reason.
    """

    run_id: str
    ended: Callable[[], BaseException | None]
    _over: BaseException | None = None
    is_done: bool = False
    _steps: "dict[asyncio.Task[object] | None, int]" = field(default_factory=dict)
    _waits: dict[int, Wait] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> BaseException | None:
        """Why the attempt does no more steps: `Suspended`, or what has ended it; None while it does."""
        return self._over or self.ended()

    @property
    def suspended(self) -> Suspended | None:
        """For what the attempt waits; None while it goes on, and where it ended in another way."""
        return self._over if isinstance(self._over, Suspended) else None

    def stop(self, why: BaseException | None) -> None:
        """Do no more steps, for a reason or because all is done; those under way go on."""
        self._over, self.is_done = self._over or why, True

    def require_going_on(self) -> None:
        """Raise `Suspended` or `Stopped`, if the attempt is over."""
        over = self.over
        if isinstance(over, Suspended):
            raise Suspended(over.wait)
        if over is not None or self.is_done:
            raise Stopped from over

    def look_at(self, task: "asyncio.Task[object]") -> None:
        """Look at what a task has raised, if the attempt is over: that a step was refused to it is nobody's error."""
        if (self.over is None and not self.is_done) or task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, Suspended | Stopped):
            message = "A task has failed whose run is over for now"
            task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})

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
        self.stop(Suspended(wait))
        return Suspended(wait)

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
def leaving_as(over: Callable[[], BaseException | None]) -> Iterator[None]:
    """
    Let an attempt that is over leave as what ended it, whatever the task made of that on its way out.

    A cancellation and a closed generator are not the task's, and leave as they are.  So does what failed beside a
    wait in an `asyncio.TaskGroup`.  Where it is over because all is done, nothing leaves.
    """
    why: BaseException | None
    try:
        yield
    except BaseExceptionGroup as group:
        refused, others = group.split((Suspended, Stopped))
        why = over()
        if others is not None and (why is None or (refused is not None and isinstance(why, Suspended))):
            raise others from group
        if why is not None:
            raise why from group
    except Stopped as stopped:
        if (why := over()) is not None:
            raise why from stopped
    except Exception as error:
        why = over()
        if why is None or why is error:
            raise
        raise why from error
    else:
        if (why := over()) is not None:
            raise why


def _leaves(waits: BaseExceptionGroup[Suspended]) -> list[Suspended]:
    leaves: list[Suspended] = []
    for wait in waits.exceptions:
        leaves += _leaves(wait) if isinstance(wait, BaseExceptionGroup) else [wait]
    return leaves
