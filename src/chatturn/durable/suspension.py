"""
Stopping an attempt before its task is done, and the steps that are under way at that time.

A wait that takes too long suspends the run: `Suspended` leaves the task, worker and lease are released, and a later
claim replays the task up to the wait.  Whatever the task does on the way out (``finally``, ``async with``,
``except BaseException``) is done again by that replay, after the wait.  So after the suspension every further step or
wait of the attempt raises `Suspended` before it has any effect.

The same holds where the engine ends the attempt: its stream has said that it failed, it was stopped, its lease or its
worker is gone.  The next attempt may take another path, and a step recorded on the way out would occupy the position of
another step.  So every further step raises `Stopped`, and the attempt leaves with the error that ended it.

Steps parallel to a wait are finished first, and so are the steps that follow them: the run is suspended when only
waits are left.
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
"""Turns of the event loop that a task, given a step's result, has to ask for its next step."""

_LOOK_AGAIN_S: Final = 1.0

_PRIMITIVES: Final = frozenset({"asyncio.locks", "asyncio.queues"})
"""Modules whose waits only another task of the same event loop can end."""


class Suspended(BaseException):
    """
    The task waits for longer than a worker should; not an Exception, so that no task's handler swallows it.

    Attributes:
        wait: What the task waits for.
    """

    def __init__(self, wait: Wait) -> None:
        super().__init__(wait)
        self.wait = wait


class Stopped(BaseException):
    """The attempt is over, and does no further step; not an Exception, so that no task's handler swallows it."""


@dataclass(slots=True, eq=False)
class Work:
    """
    The steps and waits that one attempt has under way.

    Attributes:
        run_id: The attempt's run.
        patience_ms: How long all steps under way may wait for an `asyncio.Event`, lock or queue that perhaps no task
            will ever release.
        ended: Returns why the attempt is over for a reason outside its task; None while it goes on.
        is_alone: Whether the calling task is the only one that may ask for a step.
        is_done: Whether the attempt does no more steps, whatever the reason.
        is_left: Whether the task has ended, and every task that it had started was cancelled.
    """

    run_id: str
    patience_ms: int
    ended: Callable[[], BaseException | None]
    is_alone: Callable[[], bool] = lambda: False
    _over: BaseException | None = None
    is_done: bool = False
    is_left: bool = False
    _given_up: bool = False
    _steps: "dict[asyncio.Task[object] | None, list[str]]" = field(default_factory=dict)
    _waits: dict[int, Wait] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> BaseException | None:
        """Why the attempt does no more steps: `Suspended`, or the error that ended it; None while it goes on."""
        return self._over or self.ended()

    @property
    def suspended(self) -> Suspended | None:
        """The suspension of the attempt; None while the attempt goes on, or if it ended in another way."""
        return self._over if isinstance(self._over, Suspended) else None

    def stop(self, why: BaseException | None) -> None:
        """Refuse further steps, because of *why*, or None when the task is done; steps under way go on."""
        self._over, self.is_done = self._over or why, True

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Refuse further steps while a ``with`` block cancels the tasks that are left; after it the task has ended."""
        self.stop(None)
        try:
            yield
        finally:
            self.is_left = True

    def require_going_on(self) -> None:
        """
        Return if the attempt goes on.

        Raises:
            Suspended, Stopped: The attempt is over, and its task is being left.
            DurableRunDivergenceError: The task has ended; the caller has kept its context.
        """
        if self.is_left:
            raise DurableRunDivergenceError("a step was asked for after the end of its task", run_id=self.run_id)
        over = self.over
        if isinstance(over, Suspended):
            raise Suspended(over.wait)
        if over is not None or self.is_done:
            raise Stopped from over

    def look_at(self, task: "asyncio.Task[object]") -> None:
        """After the attempt's end, report what a task has raised, unless it is `Suspended` or `Stopped`."""
        if (self.over is None and not self.is_done) or task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, Suspended | Stopped):
            message = "A task has failed whose run is over for now"
            task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})

    @contextmanager
    def step(self, intent: str) -> Iterator[None]:
        """Let a ``with`` block be a step under way, its record included."""
        task = asyncio.current_task()
        self._steps.setdefault(task, []).append(intent)
        try:
            yield
        finally:
            self._steps[task].remove(intent)
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
        Suspend the attempt, and return the exception that leaves the task.

        Of several waits the run waits for the earliest end.  It waits for one event: the key of the earliest wait, or,
        if that has none, the first key of the others.
        """
        first = min(self._waits.values(), key=lambda wait: wait.wake_at)
        keys = [wait.key for wait in (first, *self._waits.values()) if wait.key is not None]
        wait = Wait(step_index=first.step_index, key=keys[0] if keys else None, wake_at=first.wake_at)
        self.stop(Suspended(wait))
        return Suspended(wait)

    async def rest(self, timeout_ms: float | None = None) -> bool:
        """
        Wait until no step is under way, and no task asks for another step after it has got a result.

        Args:
            timeout_ms: Return after this time in any case; None for no limit.

        Returns:
            Whether no step was under way at the call.

        Raises:
            DurableRunDivergenceError: A step waits for the caller, which would wait for that step; or all steps under
                way have waited `patience_ms` for an `asyncio.Event`, lock or queue.
        """
        loop, rested = asyncio.get_running_loop(), True
        until = None if timeout_ms is None else loop.time() + timeout_ms / 1000
        idle_since: float | None = None
        while await self._busy():
            rested = False
            self._require_no_cycle()
            idle_since = (idle_since or loop.time()) if self._waits_for_itself() else None
            if idle_since is not None and loop.time() - idle_since >= self.patience_ms / 1000:
                self._given_up = True
                raise self._stuck()
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
            if self._steps or self.suspended is not None or self.is_alone():
                break
            await asyncio.sleep(0)
        return bool(self._steps) and self.suspended is None and not self._given_up

    def _waits_for_itself(self) -> bool:
        """Say whether all steps under way wait for an `asyncio.Event`, a lock, a queue and the like."""
        return all(task is not None and _awaits_asyncio(task) for task in self._steps)

    def _stuck(self) -> DurableRunDivergenceError:
        steps = ", ".join(repr(intent) for intents in self._steps.values() for intent in intents)
        message = (
            f"for {self.patience_ms} ms all steps under way ({steps}) have waited for an asyncio.Event, a lock or a "
            "queue, and what would wake them waits for them"
        )
        return DurableRunDivergenceError(message, run_id=self.run_id)

    def _require_no_cycle(self) -> None:
        """Refuse a step that awaits the current task, which is about to wait for the step."""
        here, looked_at, left = asyncio.current_task(), set(), list(self._steps)
        while left:
            awaiting = left.pop()
            if awaiting is None or awaiting in looked_at:
                continue
            looked_at.add(awaiting)
            # `_fut_waiter` is a private attribute of asyncio; without it no cycle is found.
            awaited = getattr(awaiting, "_fut_waiter", None)
            futures = [awaited, *getattr(awaited, "_children", ())]
            if here in futures:
                raise DurableRunDivergenceError("a step awaits the wait that waits for it", run_id=self.run_id)
            left += [future for future in futures if isinstance(future, asyncio.Task)]


@contextmanager
def ungrouped_waits() -> Iterator[None]:
    """
    Let a wait inside an `asyncio.TaskGroup` suspend the run as any other does.

    Of several waits, the one with the earliest end leaves.  An error beside a wait leaves alone, and fails the run.
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
    Raise what ended the attempt from a ``with`` block, whatever the task raised on its way out.

    A cancellation and a generator's `GeneratorExit` leave unchanged, and so does an error beside a wait in an
    `asyncio.TaskGroup`.  If the attempt is over because its task is done, a `Stopped` is dropped.
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


def _awaits_asyncio(task: "asyncio.Task[object]") -> bool:
    """Say whether a task waits inside one of asyncio's primitives, or awaits only tasks that do."""
    looked_at, left = set[object](), [task]
    while left:
        awaiting = left.pop()
        if awaiting in looked_at:
            continue
        looked_at.add(awaiting)
        awaited = getattr(awaiting, "_fut_waiter", None)
        tasks = [each for each in (awaited, *getattr(awaited, "_children", ())) if isinstance(each, asyncio.Task)]
        if not tasks and _innermost_module(awaiting.get_coro()) not in _PRIMITIVES:
            return False
        left += tasks
    return True


def _innermost_module(coroutine: object) -> str:
    """Return the module name of the innermost suspended frame of a coroutine."""
    module = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is not None:
            module = frame.f_globals.get("__name__", "")
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return module


def _leaves(waits: BaseExceptionGroup[Suspended]) -> list[Suspended]:
    leaves: list[Suspended] = []
    for wait in waits.exceptions:
        leaves += _leaves(wait) if isinstance(wait, BaseExceptionGroup) else [wait]
    return leaves
