"""
`Sink` over the platform's native TransformStream: a response body that is pushed.

The native stream, because its ``write()`` rejects when the client is gone; with a JavaScript one it never
settles.  What is said in one step of Python leaves in one write, at the step's end.  ``write()`` settles when
the client has taken the bytes, so at most one is on its way: what is said meanwhile gathers and leaves
together.  No task waits for a write; the promise calls back.
"""

from collections.abc import Callable
from typing import Final

import js
from pyodide.ffi import JsProxy, create_proxy, to_js

from chatturn.workerd.ffi import Bell, call_later, js_error, started

__all__ = ["ResponseSink"]

_ROOM_CHARACTERS: Final = 256_000
"""How much may wait for a slow reader before the turn waits for it."""

_STALLED_S: Final = 30.0
"""A reader that takes nothing for this long is gone: the turn must not wait for it for ever."""


class ResponseSink:
    """
    The body of one streamed response.

    Args:
        signal: The request's, which aborts when its client is gone, if the platform notices: a connection that was
            reset at once, one that was only closed at the second write after that, at the latest when one is refused.

    Attributes:
        readable: To be given to the Response.
    """

    def __init__(self, signal: JsProxy) -> None:
        self._on_lost: Callable[[], None] | None = None
        self._signal = signal
        self._listener: JsProxy | None = None
        stream = js.IdentityTransformStream.new()
        self.readable: JsProxy = stream.readable
        self._writer = stream.writable.getWriter()
        self._write = self._writer.write.bind(self._writer)
        self._waiting: list[str] = []
        self._size = 0
        self._sending = False  # a write is on its way, or about to be made
        self._unsettled = 0
        self._closed = False
        self._settled = Bell()
        self._proxies = tuple(create_proxy(each) for each in (self._send, self._written, self._refused))
        self._sender, *self._outcomes = self._proxies

    @property
    def closed(self) -> bool:
        """Whether the client is gone, or the stream was closed."""
        return self._closed

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call *callback* once if the client goes away before the end; at once, if it has gone."""
        self._on_lost = callback
        if self._signal.aborted:
            self._lose()
        else:
            self._listener = create_proxy(self._aborted)
            self._signal.addEventListener("abort", self._listener)

    def write(self, text: str) -> None:
        """Send *text*, or keep it until the write before it has been taken."""
        if self._closed:
            return
        self._waiting.append(text)
        self._size += len(text)
        if not self._sending:
            self._sending = True
            js.queueMicrotask(self._sender)

    async def drain(self) -> None:
        """Wait while too much is waiting; a reader that takes nothing for 30 s is given up."""
        while self._size > _ROOM_CHARACTERS:
            await self._progress()

    async def close(self) -> None:
        """Deliver what is left and end the body; a reader that does not take it is given up."""
        while self._sending:
            await self._progress()
        if not self._closed:
            self._closed = True
            # Settles when the client has read to the end, which nobody needs to wait for.
            self._attend(started(self._writer.close.bind(self._writer)))
        self._release_if_over()

    def _send(self) -> None:
        if self._closed:
            return
        text, self._waiting, self._size = "".join(self._waiting), [], 0
        self._attend(started(self._write, to_js(text.encode())))

    def _attend(self, promise: JsProxy) -> None:
        self._unsettled += 1
        promise.then(*self._outcomes)

    def _written(self, _value: object) -> None:
        self._unsettled -= 1
        if self._waiting:
            self._send()
        else:
            self._sending = False
        self._release_if_over()
        self._settled.ring()

    def _refused(self, _reason: object) -> None:
        """Learn that the client is gone."""
        self._unsettled -= 1
        if not self._closed:
            self._lose()
        self._release_if_over()
        self._settled.ring()

    def _aborted(self, _event: object) -> None:
        if not self._closed:
            self._lose()
            self._settled.ring()

    def _lose(self) -> None:
        self._sending = False
        self._closed = True
        self._waiting, self._size = [], 0
        if self._on_lost is not None:
            self._on_lost()

    async def _progress(self) -> None:
        """Wait until a write has settled, or give the reader up."""
        with call_later(_STALLED_S, self._give_up):
            await self._settled

    def _give_up(self) -> None:
        self._lose()
        self._attend(started(self._writer.abort.bind(self._writer), js_error("the reader takes nothing")))
        self._settled.ring()

    def _release_if_over(self) -> None:
        """Give back what the promises call, once all of them have settled."""
        if not self._closed or self._unsettled:
            return
        for proxy in self._proxies:
            proxy.destroy()
        self._proxies = ()
        if self._listener is not None:
            self._signal.removeEventListener("abort", self._listener)
            self._listener.destroy()
            self._listener = None
