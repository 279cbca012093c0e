"""
`Sink` over the platform's native TransformStream: a response body that is pushed.

The native stream, because its ``write()`` rejects when the client is gone; with a JavaScript one it never
settles.  ``write()`` settles when the client has taken the bytes, so at most one write is pending; text that
comes meanwhile gathers and leaves in the next write.  No task waits for a write; the promise calls back.

Text written before the response is made gathers, too.  If it is the whole body, as in a replay, no stream is made.
"""

from collections.abc import Callable
from typing import Final

import js
from pyodide.ffi import JsProxy, create_proxy, to_js

from chatturn.workerd.ffi import LONG_BYTES, Bell, Timer, free, js_error, started

__all__ = ["ResponseSink"]

_ROOM_CHARACTERS: Final = 256_000
"""How many characters may wait for a slow reader before the turn waits for it."""

_STALLED_S: Final = 30.0
"""A reader that takes nothing for this long is gone: the turn must not wait for it for ever."""

_new_stream: Final = js.IdentityTransformStream.new


class ResponseSink:
    """
    The body of one response.

    Args:
        request: The raw request, whose signal aborts when the platform notices that the client is gone: at once for a
            connection that was reset, at the second write for one that was closed.  A refused write says it, too.
    """

    def __init__(self, request: JsProxy) -> None:
        self._on_lost: Callable[[], None] | None = None
        self._request = request
        self._signal: JsProxy | None = None
        self._listener: JsProxy | None = None
        self._writer: JsProxy | None = None
        self._write: JsProxy | None = None
        self._long: JsProxy | None = None  # the bytes that are on their way, if there are many
        self._waiting: list[str] = []
        self._size = self._on_its_way = 0
        self._sending = False
        self._closed = False
        self._settled = Bell()

    def body(self) -> JsProxy:
        """Return the response's body; call it once.  It is the whole text if the sink is closed, else a stream."""
        if self._closed:
            return to_js(self._taken())
        stream = _new_stream()
        self._writer = stream.writable.getWriter()
        self._write = self._writer.write.bind(self._writer)
        if self._waiting:
            self._send()
        return stream.readable

    @property
    def held(self) -> int:
        """How many characters the client has not taken."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether the client is gone, or the body has ended."""
        return self._closed

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call *callback* once if the client goes away before the body's end; at once if it has already gone."""
        self._on_lost = callback
        self._signal = self._request.signal
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
        if not self._sending and self._write is not None:
            self._send()

    async def drain(self, room: int | None = None) -> None:
        """Wait until at most *room* characters (256,000) wait; give up a reader that takes nothing for 30 s."""
        while self._size > (_ROOM_CHARACTERS if room is None else room) and not self._closed:
            await self._progress()

    async def close(self) -> None:
        """Deliver what is left and end the body; a reader that does not take it is given up."""
        while self._sending:
            await self._progress()
        self._ignore_signal()
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            # Settles when the client has read to the end; no task waits for that.
            self._attend(started(self._writer.close.bind(self._writer)))

    def abort(self) -> None:
        """Break the body off: the client sees the connection fail."""
        if not self._closed:
            self._closed = True
            self._abandon("the rest cannot be read")

    def _taken(self) -> bytes:
        """Take all text that waits, as bytes."""
        text, self._waiting, self._on_its_way = "".join(self._waiting), [], self._size
        return text.encode()

    def _send(self) -> None:
        self._sending = True
        content = to_js(self._taken())
        self._long = content if self._on_its_way > LONG_BYTES else None
        self._attend(started(self._write, content))  # type: ignore[arg-type]  # there is a stream

    def _attend(self, promise: JsProxy) -> None:
        promise.then(self._written, self._refused)

    def _written(self, _value: object) -> None:
        if self._long is not None and not self._closed:
            free(self._long)
        self._long = None
        self._size -= self._on_its_way
        self._on_its_way = 0
        if self._waiting:
            self._send()
        else:
            self._sending = False
        self._settled.ring()

    def _refused(self, _reason: object) -> None:
        """Learn that the client is gone."""
        if not self._closed:
            self._lose()
        self._settled.ring()

    def _aborted(self, _event: object) -> None:
        if not self._closed:
            self._lose()
            self._settled.ring()

    def _lose(self) -> None:
        self._sending = False
        self._closed = True
        self._waiting, self._size, self._on_its_way, self._long = [], 0, 0, None
        if self._on_lost is not None:
            self._on_lost()

    async def _progress(self) -> None:
        """Wait until a write has settled, or give the reader up."""
        with Timer(_STALLED_S, self._give_up):
            await self._settled

    def _give_up(self) -> None:
        self._lose()
        self._abandon("the reader takes nothing")
        self._settled.ring()

    def _abandon(self, reason: str) -> None:
        if self._writer is not None:
            self._attend(started(self._writer.abort.bind(self._writer), js_error(reason)))

    def _ignore_signal(self) -> None:
        if self._listener is not None and self._signal is not None:
            self._signal.removeEventListener("abort", self._listener)
            self._listener.destroy()
            self._listener = None
