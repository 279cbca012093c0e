"""Work that goes on when its request has been answered."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

import js
from pyodide.ffi import JsProxy

from chatturn.workerd import ffi

__all__ = ["outlive"]

_RUNNING: Final[set[asyncio.Task[Any] | None]] = set()
"""The tasks that run; the event loop holds only weak references to them."""

_with_resolvers: Final = js.Promise.withResolvers


def outlive(work: Awaitable[None], context: Any) -> None:
    """
    Run *work* to its end, whatever becomes of the request.

    The work begins within this call, unless synchronous HTTP is in use; work that never waits has ended when the call
    returns.  Passed to ``waitUntil`` directly, it would begin two turns of the event loop later, and the ``waitUntil``
    of a Durable Object would forget it.

    Args:
        work: Raises nothing.
        context: The request's context, whose ``waitUntil`` takes a promise.
    """
    over: JsProxy | None = None

    async def run() -> None:
        try:
            await work
        finally:
            if over is not None:
                over.resolve()
            _RUNNING.discard(asyncio.current_task())

    # Eager tasks came with Python 3.12; this is 3.13.  One that may call `run_sync` is begun by the event loop, on a
    # stack that can be set aside.
    eagerly = not ffi.run_sync_is_allowed()
    task = asyncio.Task(run(), loop=asyncio.get_running_loop(), eager_start=eagerly)  # type: ignore[call-arg]
    if not task.done():
        _RUNNING.add(task)
        over = _with_resolvers()
        context.waitUntil(over.promise)
