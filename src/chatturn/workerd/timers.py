"""
Timers of the event loop whose cancellation frees them.

A handle of Pyodide's event loop only marks itself when it is cancelled: its JavaScript timer stays, and with
it a few kilobytes of Python.  The platform drops the timers of a request that is over, so they are never
freed.  Most of our timers are deadlines, cancelled nearly always, and a turn has several.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final
from weakref import WeakSet

import js
from pyodide.ffi import create_once_callable

from chatturn.workerd import ffi

__all__ = ["use_cancellable_timers"]

_IMMEDIATE_S: Final = 0.002
"""Up to this delay Pyodide's loop uses a message instead of a timer, and a cancellation would come too late."""


_WITH_CANCELLABLE_TIMERS: Final[WeakSet[asyncio.AbstractEventLoop]] = WeakSet()


def use_cancellable_timers() -> None:
    """
    Make the running loop's `call_later`, and all that uses it, create timers that are freed when cancelled.

    A second call does nothing.
    """
    loop = asyncio.get_running_loop()
    if loop in _WITH_CANCELLABLE_TIMERS:
        return
    _WITH_CANCELLABLE_TIMERS.add(loop)
    immediately = loop.call_later

    def call_later(
        delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if delay <= _IMMEDIATE_S:
            return immediately(delay, callback, *args, context=context)
        kind = _SyncTimer if ffi.run_sync_is_allowed() else _Timer
        return kind(delay, callback, args, loop, context)

    loop.call_later = call_later  # type: ignore[assignment]  # the loop of Pyodide returns plain handles, too


class _Timer(asyncio.Handle):
    def __init__(
        self,
        delay: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        super().__init__(callback, args, loop, context)
        self._timer = ffi.Timer(delay, self._run)

    def cancel(self) -> None:
        """Take the timer back; a second time does nothing."""
        self._timer.cancel()
        super().cancel()


class _SyncTimer(asyncio.Handle):
    """Calls as the loop does: on a stack that `run_sync` can set aside.  It costs more."""

    def __init__(
        self,
        delay: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        super().__init__(callback, args, loop, context)
        self._proxy = create_once_callable(self._fire, _may_syncify=True)
        self._timer: int | None = js.setTimeout(self._proxy, delay * 1000)

    def cancel(self) -> None:
        """Take the timer back; a second time does nothing."""
        if self._timer is not None:
            js.clearTimeout(self._timer)
            self._timer = None
            self._proxy.destroy()
        super().cancel()

    def _fire(self) -> None:
        self._timer = None
        self._run()
