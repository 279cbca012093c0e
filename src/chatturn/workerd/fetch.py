"""
`Transport` over the platform's ``fetch``.

Cancelling a Python task does not stop its fetch, so every way out of a request goes through its
AbortController: an aborted signal closes the connection, whether headers or body were on their way.

A body is pumped by the platform into a stream whose sink is ours (see `_Inbox`): a chunk that arrives costs a
call into Python, 2 us, and no promise; whoever takes gets all that has arrived.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import js
from pyodide.ffi import JsException, JsProxy, create_once_callable, create_proxy

from chatturn.backends import TransportRequest, TransportResponse
from chatturn.errors import BackendTransportError
from chatturn.workerd.ffi import Bell, js_error, js_object, settled, started
from chatturn.workerd.headers import LazyHeaders

__all__ = ["FetchTransport"]

_ROOM_CHUNKS: Final = 256
"""How much may wait to be taken before the platform stops reading the connection."""

_GATHER_MS: Final = 1
"""While chunks keep coming: how long they gather before they are taken together."""


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
        finally:
            inbox.close()


class _Inbox:
    """
    The sink of a WritableStream into which the platform pumps *body*.

    Its ``write`` is a Proxy around the ``push`` of an array.  While the Proxy's trap is set, every chunk calls
    into Python: when it has been quiet, so that the first chunk is taken at once, and when nobody takes, so
    that there is an end to what waits.  Otherwise chunks gather without any Python, and a timer looks at them.

    Args:
        body: What to pump.  Whoever aborts its fetch ends the pump.
    """

    def __init__(self, body: JsProxy) -> None:
        self._bell = Bell()
        self._arrived = js.Array.new()
        self._ended = False
        self._closed = False
        self._error: JsException | None = None
        self._room: JsProxy | None = None
        self._timer: int | None = None
        self._proxies = [create_proxy(each) for each in (self._arrives, self._look, self._end)]
        self._trap, self._looker, end = self._proxies
        self._handler = js_object({"apply": self._trap})
        write = js.Proxy.new(self._arrived.push.bind(self._arrived), self._handler)
        sink = js.WritableStream.new(js_object({"write": write, "close": end, "abort": end}))
        # Its outcome is told to the sink; nobody else needs it, but a rejection must be received.
        started(body.pipeTo.bind(body, sink)).then(*map(create_once_callable, (_ignore, _ignore)))

    async def take(self) -> bytes:
        """
        Wait until something has arrived, and take all of it; at the end, b"".

        Raises:
            JsException: The connection broke, and everything before that was taken.
        """
        if not self._arrived.length and not self._ended:
            await self._bell
        if self._arrived.length:
            # `push` was given the stream's controller beside each chunk.
            taken = self._arrived.splice(0).filter(js.ArrayBuffer.isView).to_py()
            if self._room is not None:
                self._room.resolve()
                self._room = None
            return b"".join(taken)
        if self._error is not None:
            raise self._error
        return b""

    def close(self) -> None:
        """Take nothing any more."""
        self._closed = True
        self._release()

    # What the platform calls.

    def _arrives(self, push: JsProxy, _this: object, arguments: JsProxy) -> JsProxy | None:
        """Take notice of a chunk; return a promise to wait for if there is no room for another."""
        push(arguments[0])
        if self._timer is None:
            self._look_after(0)
        if self._arrived.length < _ROOM_CHUNKS:
            return None
        self._room = js.Promise.withResolvers()
        return self._room.promise

    def _look(self) -> None:
        """Wake whoever waits for what has arrived, and look again soon; if nothing has, let the next chunk call."""
        self._timer = None
        something = self._ended or self._arrived.length
        if not something or not self._bell.awaited:
            self._handler.apply = self._trap
            return
        if not self._ended:
            self._handler.apply = None
            self._look_after(_GATHER_MS)
        self._bell.ring()

    def _look_after(self, ms: int) -> None:
        self._timer = js.setTimeout(self._looker, ms)

    def _end(self, error: JsException | None = None) -> None:
        """Learn that the body is complete, or why it is not."""
        self._ended, self._error = True, error
        if self._timer is not None:
            js.clearTimeout(self._timer)
        self._look_after(0)
        self._release()

    def _release(self) -> None:
        """Give back what JavaScript called, once it will call no more."""
        if not (self._ended and self._closed):
            return
        js.clearTimeout(self._timer)
        for proxy in self._proxies:
            proxy.destroy()


def _ignore(_outcome: object) -> None:
    """Receive what nobody needs."""
