"""
`Transport` over the platform's ``fetch``.

Cancelling a Python task does not stop its fetch, so every way out of a request goes through its
AbortController: an aborted signal closes the connection, whether headers or body were on their way.

A body is pumped by the platform into a stream whose sink is ours (see `_Inbox`): a chunk that arrives costs a
call into Python, 2 us, and no promise; whoever takes gets all that has arrived.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import js
from pyodide.ffi import JsException, JsProxy, create_once_callable, create_proxy

from chatturn.backends import TransportRequest, TransportResponse
from chatturn.errors import BackendTransportError
from chatturn.workerd.ffi import js_error, js_object, settled, started
from chatturn.workerd.headers import LazyHeaders

__all__ = ["FetchTransport"]

_ROOM_BYTES: Final = 262_144
"""How much of a body may wait here before the platform stops reading its connection."""

_GATHER_MS: Final = 1

class FetchTransport:
    """Sends requests with ``fetch``; redirects are answers like others."""

    @asynccontextmanager
    async def send(self, request: TransportRequest) -> AsyncIterator[TransportResponse]:
        """Send *request*; see `Transport.send`."""
        controller = js.AbortController.new()
        options = {
            "method": request.method,
            "headers": dict(request.headers),
            "body": request.body,
            "redirect": "manual",
            "signal": controller.signal,
        }
        try:
            try:
                response = await settled(started(js.fetch.bind(None, request.url, js_object(options))))
            except JsException as error:
                raise BackendTransportError(str(error), backend="fetch") from error
            yield _FetchResponse(response)
        finally:
            controller.abort(js_error("the request is over"))


class _FetchResponse:
    def __init__(self, response: JsProxy) -> None:
        self._response = response
        self.status: int = response.status
        self.headers: Mapping[str, str] = LazyHeaders(response.headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        body = self._response.body
        if not body:
            return
        inbox = _Inbox(body)
        try:
            while arrived := await inbox.take():
                yield arrived
        except JsException as error:
            raise BackendTransportError(str(error), backend="fetch") from error


class _Inbox:
    """
    The sink of a WritableStream into which the platform pumps *body*.

    It ends when the body does, well or not; whoever aborts the fetch ends it, too.
    """

    def __init__(self, body: JsProxy) -> None:
        self._arrived: list[bytes] = []
        self._size = 0
        self._ended = False
        self._error: JsException | None = None
        self._taker: asyncio.Future[None] | None = None
        self._room: JsProxy | None = None
        self._gathering = False
        self._timer = create_proxy(self._gathered)
        self._proxies = {name: create_proxy(getattr(self, name)) for name in ("write", "close", "abort")}
        stream = js.WritableStream.new(js_object(self._proxies))
        # Its outcome is told to `close` and `abort`; nobody else needs it, but a rejection must be received.
        started(body.pipeTo.bind(body, stream)).then(*map(create_once_callable, (_ignore, _ignore)))

    async def take(self) -> bytes:
        """
        Wait until something has arrived, and take all of it; at the end, b"".

        Raises:
            JsException: The connection broke, and everything before that was taken.
        """
        if not self._arrived and not self._ended:
            self._taker = asyncio.Future()
            await self._taker
        if self._arrived:
            taken, self._arrived, self._size = b"".join(self._arrived), [], 0
            if self._room is not None:
                self._room.resolve()
                self._room = None
            return taken
        if self._error is not None:
            raise self._error
        return b""

    # What the platform calls.

    def write(self, chunk: JsProxy, _controller: JsProxy) -> JsProxy | None:
        """Keep *chunk*; return a promise to wait for if there is no room for another."""
        data = chunk.to_bytes()
        if data:
            self._arrived.append(data)
            self._size += len(data)
            self._wake()
        if self._size <= _ROOM_BYTES:
            return None
        self._room = js.Promise.withResolvers()
        return self._room.promise

    def close(self) -> None:
        """Learn that the body is complete."""
        self._end(None)

    def abort(self, reason: Any) -> None:
        """Learn that the connection broke, or was closed by an abort of the fetch."""
        self._end(reason)

    def _end(self, error: Any) -> None:
        self._ended = True
        self._error = error
        self._wake()
        for proxy in self._proxies.values():
            proxy.destroy()

    def _wake(self) -> None:
        if self._gathering and not self._ended and self._size <= _ROOM_BYTES:
            return
        if not self._gathering and not self._ended:
            self._gathering = True
            js.setTimeout(self._timer, _GATHER_MS)
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    def _gathered(self) -> None:
        self._gathering = False
        if self._arrived:
            self._wake()


def _ignore(_outcome: object) -> None:
    """Receive what nobody needs."""
