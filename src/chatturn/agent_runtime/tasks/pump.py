"""
A stream that is produced in an asyncio task of its own, one item ahead of its reader.

The reader may wait for something else at the same time, and may leave at any time: leaving the ``async with`` block
cancels the producer, and waits until the producer has released what it holds.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Self, TypeAlias, TypeVar

from chatturn.product_calls import unlogged

__all__ = ["Produce", "Pump"]

T = TypeVar("T")

Put: TypeAlias = Callable[[T], Awaitable[None]]
Produce: TypeAlias = Callable[[Put[T]], Awaitable[None]]
"""Takes `put`, and awaits it with each item; `put` waits until the item before was taken."""


class _Item(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value


class Pump(Generic[T]):
    """
    Runs *produce* from the beginning of its ``async with`` block to the end.

    Iterating raises what *produce* raises, after the items before it.
    """

    def __init__(self, produce: Produce[T]) -> None:
        self._produce = produce
        self._items: asyncio.Queue[_Item[T] | BaseException | None] = asyncio.Queue(maxsize=1)
        self._task: asyncio.Task[None] | None = None
        self._left = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        unlogged(self._task)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._left = True
        if self._task is not None:
            self._task.cancel()
            # The reader has had the error already, or has left and does not wait for it.
            await asyncio.gather(self._task, return_exceptions=True)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        item = await self._items.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, _Item):
            return item.value
        raise item

    async def _run(self) -> None:
        try:
            await self._produce(self._put)
        except BaseException as error:
            task = asyncio.current_task()
            if self._left or task is None or task.cancelling():
                raise  # nobody takes items any more, so `put` would wait for ever
            own = isinstance(error, asyncio.CancelledError)
            await self._items.put(_cancelled_by_itself(error) if own else error)
        else:
            await self._items.put(None)

    async def _put(self, value: T) -> None:
        if self._left:
            raise asyncio.CancelledError  # the producer has ignored its first cancellation
        await self._items.put(_Item(value))


def _cancelled_by_itself(cause: BaseException) -> RuntimeError:
    error = RuntimeError("it was cancelled by itself")
    error.__cause__ = cause
    return error
