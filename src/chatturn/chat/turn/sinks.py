"""
Where a turn's lines go: the seam between the turn, which must go on, and its reader, who may not.

A turn pushes its lines; it is never pulled.  So a reader that is slow, gone, or never came changes when a
turn's lines are delivered but not whether its answer is completed and stored.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Final, Protocol

__all__ = ["BufferSink", "NoSink", "PullSink", "Sink"]

_ROOM_CHARACTERS: Final = 64_000

_STALLED_S: Final = 30.0
"""A reader that takes nothing for this long is gone: the turn must not wait for it for ever."""


class Sink(Protocol):
    """Takes the lines of one turn's log for one reader, in order."""

    def write(self, text: str) -> None:
        """
        Take *text*: whole lines.  Never waits and never raises; once `closed`, it is dropped.

        What is written while an earlier write is still on its way leaves together in one.
        """

    async def drain(self, room: int | None = None) -> None:
        """
        Wait until the reader has room again, or is gone.  Immediate in the usual case.

        Args:
            room: How many characters the reader may still have to take; None for what the sink has room for.
        """

    @property
    def held(self) -> int:
        """How many characters are kept here for the reader: what it has not taken, and what later text needs."""

    @property
    def closed(self) -> bool:
        """Whether the reader is gone."""

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call *callback*, once, if the reader goes away before the end."""

    async def close(self) -> None:
        """Deliver what is left and end the stream.  Never raises."""

    def abort(self) -> None:
        """Break the stream off, so that nobody mistakes the delivered part for the whole."""


class BufferSink:
    """A sink that keeps everything: for harnesses and tests, and wherever there is no live reader."""

    held = 0

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._closed = False

    def write(self, text: str) -> None:
        """Keep *text*."""
        if not self._closed:
            self._texts.append(text)

    async def drain(self, room: int | None = None) -> None:
        """Return at once: there is always room."""

    @property
    def closed(self) -> bool:
        """Whether the stream has ended."""
        return self._closed

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Do nothing: this reader never goes away."""

    async def close(self) -> None:
        """End the stream."""
        self._closed = True

    def abort(self) -> None:
        """End the stream."""
        self._closed = True

    def text(self) -> str:
        """Return everything written so far."""
        return "".join(self._texts)


class NoSink:
    """A sink without a reader: for a turn that goes on while nobody reads it."""

    closed = True
    held = 0

    def write(self, text: str) -> None:
        """Drop *text*."""

    async def drain(self, room: int | None = None) -> None:
        """Return at once."""

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Do nothing: a reader that was never there cannot go away."""

    async def close(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


class PullSink:
    """A sink whose reader pulls, in the same event loop; at most a few writes wait for it."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._size = 0
        self._ended = False
        self._closed = False
        self._changed = asyncio.Event()
        self._on_lost: Callable[[], None] | None = None

    def write(self, text: str) -> None:
        """Keep *text* until it is pulled."""
        if not self._closed:
            self._texts.append(text)
            self._size += len(text)
            self._changed.set()

    async def drain(self, room: int | None = None) -> None:
        """Wait until little is left to be pulled, or the reader is gone."""
        while self._size > (_ROOM_CHARACTERS if room is None else room) and not self._closed:
            self._changed.clear()
            try:
                async with asyncio.timeout(_STALLED_S):
                    await self._changed.wait()
            except TimeoutError:
                self._lose()

    @property
    def held(self) -> int:
        """How many characters were not pulled yet."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether the reader is gone."""
        return self._closed

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call *callback* if the reader stops pulling before the end."""
        self._on_lost = callback

    async def close(self) -> None:
        """End the stream after what is left."""
        self._ended = True
        self._changed.set()

    def abort(self) -> None:
        """End the stream after what is left; the reader asks the writer's task what went wrong."""
        self._ended = True
        self._changed.set()

    async def pull(self, writer: Coroutine[object, object, None]) -> AsyncIterator[str]:
        """Run *writer*, which writes to this sink, and yield what it writes, whatever has gathered at a time."""
        task = asyncio.get_running_loop().create_task(writer)
        try:
            while self._texts or not self._ended:
                if not self._texts:
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                text, self._texts, self._size = "".join(self._texts), [], 0
                self._changed.set()
                yield text
            await task
        finally:
            self._lose()
            # The loop holds tasks weakly; the writer must outlive a reader that stops early.
            _WRITERS.add(task)
            task.add_done_callback(_WRITERS.discard)

    def _lose(self) -> None:
        """Take note that nobody pulls any more."""
        if self._closed:
            return
        self._closed = True
        self._texts, self._size = [], 0
        self._changed.set()
        if self._on_lost is not None and not self._ended:
            self._on_lost()


_WRITERS: Final[set[asyncio.Task[None]]] = set()
