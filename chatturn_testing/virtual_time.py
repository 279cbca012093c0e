"""
An event loop on which time passes only when nothing else can happen, and then at once.

``asyncio.sleep(120)`` returns as soon as no task can go on, and ``loop.time()`` is 120 seconds later; so
tests of deadlines take no time and come out the same on every machine.  It does not wait for sockets
or threads: test code that uses them in another way.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["Deadlock", "VirtualTimeLoop", "run"]

T = TypeVar("T")
_HORIZON_S: Final = 7 * 86_400.0


class Deadlock(AssertionError):
    """Tasks wait for something that can no longer happen, or only beyond all deadlines."""


class _JumpingSelector(selectors.DefaultSelector):
    """Moves the clock to the next timer instead of waiting for it."""

    def __init__(self, start_s: float) -> None:
        super().__init__()
        self.now = start_s
        self._horizon_s = start_s + _HORIZON_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self.now > self._horizon_s:
            raise Deadlock(f"nothing can happen any more at {self.now:.3f} s; waiting: {_waiting()}")
        self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """
    An event loop whose time begins at *start_s*.

    Args:
        start_s: The first time in seconds; 0, or the time at which another loop stopped.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._jumping = _JumpingSelector(start_s)
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._jumping.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """
    Run *main* on a loop of its own.

    Raises:
        Deadlock: *main* would never end; the message says which task waits where.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def _waiting() -> str:
    places = []
    for task in asyncio.all_tasks(asyncio.get_running_loop()):
        frames = task.get_stack(limit=1)
        where = f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else "its start"
        places.append(f"{getattr(task.get_coro(), '__qualname__', task.get_name())} at {where}")
    return "; ".join(sorted(places)) or "nobody"
