"""
The deadlines of one model call, on one timer.

In the Worker a timer crosses into JavaScript, and a streamed answer waits thousands of times.  So a wait only
notes its due time; the one pending timer reads that time when it fires, and is set again if the time has moved.
A deadline counts while the call waits, never while its consumer works on what it got: the cancelled task is always
inside a `Watchdog.limit`.
"""

import asyncio
import math
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from chatturn.errors import BackendTimeout

__all__ = ["UNLIMITED", "Deadline", "Watchdog"]

_EARLY_S: Final = 0.001  # JavaScript's timers count whole milliseconds and may fire within the last one


@dataclass(frozen=True, slots=True)
class Deadline:
    """
    A limit of one kind of wait.

    Attributes:
        name: The setting that decides it, as in ``idle_timeout_ms``.
        ms: The limit in milliseconds; 0 for none.
        missing: What has not come when the time is over, for the error's message.
    """

    name: str
    ms: int
    missing: str

    def __post_init__(self) -> None:
        if self.ms < 0:
            raise ValueError(f"{self.name} is {self.ms}, but must be at least 0")

    def seconds(self) -> float:
        """Return the limit in seconds, infinite for none."""
        return self.ms / 1000 if self.ms else math.inf

    def __str__(self) -> str:
        return f"no {self.missing} within {self.ms} ms ({self.name})"


UNLIMITED: Final = Deadline("", 0, "")


class Watchdog:
    """
    Ends waits that take too long, one at a time.

    ``with watchdog.limit(deadline): await …`` raises `BackendTimeout`, naming the deadline, if the wait
    outlasts it or the whole call outlasts *total*.  A cancellation from outside is passed on as it came.
    """

    def __init__(self, total: Deadline, *, backend: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._total = total
        self._began_at = self._loop.time()
        self._ends_at = self._began_at + total.seconds()
        self._backend = backend
        self._timer: asyncio.Handle | None = None
        self._timer_at = math.inf
        self._deadline = UNLIMITED
        self._due_at = math.inf
        self._task: asyncio.Task[object] | None = None  # the task that waits
        self._cancelling = 0
        self._expired: Deadline | None = None

    def elapsed_s(self) -> float:
        """Return how long the call has taken so far, in seconds."""
        return self._loop.time() - self._began_at

    def remaining_s(self) -> float:
        """Return how long the whole call may still take, in seconds; 0 or less if its time is over."""
        return self._ends_at - self._loop.time()

    def limit(self, deadline: Deadline) -> Self:
        """Limit the next wait, a ``with`` block, to *deadline* and to the rest of the total."""
        self._deadline = deadline
        return self

    def close(self) -> None:
        """Cancel the timer, as at the call's end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None:
        self._task = task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline needs a task to cancel")
        self._cancelling = task.cancelling()
        self._due_at = min(self._loop.time() + self._deadline.seconds(), self._ends_at)
        if self._due_at < self._timer_at:
            self.close()
            self._set_timer()

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        task, self._task = self._task, None
        expired, self._expired = self._expired, None
        if expired is None or task is None or task.uncancel() > self._cancelling:
            return
        raise BackendTimeout(str(expired), backend=self._backend) from error

    def _set_timer(self) -> None:
        self._timer_at = self._due_at
        delay_s = self._due_at - self._loop.time()
        self._timer = self._loop.call_later(max(0.0, delay_s), self._look)  # Pyodide's loop refuses a negative delay

    def _look(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._task is None:
            return  # no task waits; the next wait sets the timer
        if self._due_at - self._loop.time() > _EARLY_S:
            self._set_timer()
            return
        self._expired = self._total if self._due_at == self._ends_at else self._deadline
        self._task.cancel()
