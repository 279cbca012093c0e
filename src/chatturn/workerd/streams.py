"""
`Sink` over the platform's native TransformStream: a response body that is pushed.

The native stream, because its ``write()`` rejects when the client is gone; with a JavaScript one it never
settles.  ``write()`` settles when the client has taken the bytes, so at most one is on its way: what is said
meanwhile gathers and leaves together.  No Python task waits for a write; the promise calls back.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import js
from pyodide.ffi import JsProxy, create_proxy, to_js

from chatturn.workerd.ffi import js_error, started

__all__ = ["ResponseSink"]

_ROOM_CHARACTERS: Final = 256_000
"""How much may wait for a slow reader before the turn waits for it."""

_STALLED_S: Final = 30.0
"""A reader that takes nothing for this long is gone: the turn must not wait for it for ever."""


class ResponseSink:
    """
    The body of one streamed response.

    Attributes:
        readable: To be given to the Response.
    """

    def __init__(self) -> None:
        self._on_lost: Callable[[], None] | None = None
        stream = js.IdentityTransformStream.new()
        self.readable: JsProxy = stream.readable
        self._writer = stream.writable.getWriter()
        self._write = self._writer.write.bind(self._writer)
        self._waiting: list[str] = []
        self._size = 0
        self._in_flight = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._proxies: tuple[JsProxy, ...] = (create_proxy(self._written), create_proxy(self._refused))

    @property
    def closed(self) -> bool:
        """Whether the client is gone, or the stream was closed."""
        return self._closed

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call *callback* once if the client goes away before the end."""
        self._on_lost = callback

    def write(self, text: str) -> None:
        """Send *text*, or keep it until the write before it has been taken."""
        if self._closed:
            return
        self._waiting.append(text)
        self._size += len(text)
        if not self._in_flight:
            self._send()

    async def drain(self) -> None:
        """Wait while too much is waiting; a reader that takes nothing for 30 s is given up."""
        while self._size > _ROOM_CHARACTERS:
            await self._progress()

    async def close(self) -> None:
        """Deliver what is left and end the body; a reader that does not take it is given up."""
        while self._in_flight:
            await self._progress()
        if not self._closed:
            self._closed = True
            # Settles when the client has read to the end, which nobody needs to wait for.
            started(self._writer.close.bind(self._writer)).then(*self._proxies)
        else:
            self._release()

    def _send(self) -> None:
        text, self._waiting, self._size = "".join(self._waiting), [], 0
        self._in_flight = True
        started(self._write, to_js(text.encode())).then(*self._proxies)

    def _written(self, _value: object) -> None:
        if self._closed:
            self._release()
            return
        self._in_flight = False
        if self._waiting:
            self._send()
        self._wake()

    def _refused(self, _reason: object) -> None:
        """Learn that the client is gone."""
        if self._closed:
            self._release()
            return
        self._lose()

    def _lose(self) -> None:
        self._in_flight = False
        self._closed = True
        self._waiting, self._size = [], 0
        self._wake()
        if self._on_lost is not None:
            self._on_lost()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _progress(self) -> None:
        """Wait until a write has settled, or give the reader up."""
        self._waiter = asyncio.Future()
        try:
            async with asyncio.timeout(_STALLED_S):
                await self._waiter
        except TimeoutError:
            self._lose()
            self._writer.abort(js_error("the reader takes nothing"))

    def _release(self) -> None:
        """Give back what the promises called; they have all settled."""
        for proxy in self._proxies:
            proxy.destroy()
        self._proxies = ()
