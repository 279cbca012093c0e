"""Awaiting code that is not ours: it may be late, and it may cancel itself."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["Late", "apart", "awaited", "unlogged"]

T = TypeVar("T")
F = TypeVar("F", bound="asyncio.Future[Any]")


class Late(Exception):
    """It took longer than it was given."""


async def awaited(call: Awaitable[T], timeout_ms: int) -> T:
    """
    Return what *call* returns.

    Args:
        call: A hook's, a tool's or a step's.
        timeout_ms: How long it may take; 0 for no end.

    Raises:
        Late: It took longer.
        RuntimeError: It was cancelled by itself, as code is that awaits a task which it has cancelled.  A cancellation
            from outside is passed on as it came.
        Exception: Whatever it raises, a `TimeoutError` of its own, too.
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
    Return *task*; what it raises is not logged where nobody waits for it any more.

    asyncio would print the words of its error, and those may be anybody's, or quote a credential.
    """
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def apart(main: Coroutine[Any, Any, T], stop: Callable[[BaseException], None]) -> T:
    """
    Run *main* in a task of its own: so a cancellation from outside is never taken for one of its own timeouts.

    Args:
        main: Is cancelled with the caller, and waited for.
        stop: Is told of a cancellation from outside, before *main* is.

    Raises:
        CancelledError: The caller was cancelled, whatever *main* made of it.
        BaseException: Whatever *main* raises.
    """
    task = asyncio.get_running_loop().create_task(main)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
            stop(error)
            task.cancel()
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # Seen: the cancellation is what leaves.
    raise cancelled
