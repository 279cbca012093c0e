"""Awaits a product's code, which may take too long and may cancel itself."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar

__all__ = ["Late", "apart", "awaited", "unlogged"]

T = TypeVar("T")
F = TypeVar("F", bound="asyncio.Future[Any]")


class Late(Exception):
    """The call took longer than its timeout."""


async def awaited(call: Awaitable[T], timeout_ms: int) -> T:
    """
    Return what *call* returns.

    Args:
        call: A hook's, a tool's or a step's.
        timeout_ms: The longest time; 0 for no limit.

    Raises:
        Late: The call took longer than *timeout_ms*.
        RuntimeError: The call cancelled itself, for example by awaiting a task that it had cancelled.  A cancellation
            from outside is passed on unchanged.
        Exception: Whatever *call* raises, including its own `TimeoutError`.
    """
    task = asyncio.current_task()
    try:
        async with asyncio.timeout(timeout_ms / 1000 or None) as deadline:
            return await call
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise Late from error
    except asyncio.CancelledError as error:
        if task is None or task.cancelling():
            raise
        raise RuntimeError("it was cancelled by itself") from error


def unlogged(task: F) -> F:
    """
    Return *task*; if nobody awaits it, asyncio does not log its error.

    The error's message may quote a user's words or a credential.
    """
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def apart(main: Coroutine[Any, Any, T], stop: Callable[[BaseException], None]) -> T:
    """
    Run *main* in its own task, so that it never takes a cancellation from outside for one of its own timeouts.

    The context variables that it sets stay set, as where it is awaited.

    Args:
        main: The coroutine; it is cancelled with the caller, and waited for.
        stop: Called with a cancellation from outside before *main* is cancelled.

    Raises:
        CancelledError: The caller was cancelled, whatever *main* raised then.
        BaseException: Whatever *main* raises.
    """
    after = Context()

    async def inner() -> T:
        nonlocal after
        try:
            return await main
        finally:
            after = copy_context()

    task = asyncio.get_running_loop().create_task(inner())
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
            stop(error)
            task.cancel()
    main.close()  # It may have been cancelled before it began.
    for variable, value in after.items():
        variable.set(value)
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # Retrieve the error, so that asyncio does not log it; the cancellation is raised.
    raise cancelled
