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
from chatturn.workerd.ffi import Bell, as_exception, js_error, js_object, settled, started
from chatturn.workerd.headers import LazyHeaders

__all__ = ["FetchTransport"]

_ROOM_CHUNKS: Final = 256
"""How much may wait to be taken before the platform stops reading the connection."""

_GATHER_MS: Final = (1, 8)
"""
While chunks keep coming: how long they gather before they are taken together, and how long at most.

It doubles as long as a crowd has gathered, more than any model says in that time: a burst, or an answer that
was ready before.  Then few steps of Python count for more than a few milliseconds.
"""

_CROWD: Final = 32


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
        self._error: BaseException | None = None
        self._room: JsProxy | None = None
        self._timer: int | None = None
        self._gathered_ms = _GATHER_MS[0]
        calls = (self._arrives, self._look, self._end, self._break)
        self._proxies = [create_proxy(call) for call in calls]
        self._trap, self._looker, end, break_ = self._proxies
        self._handler = js_object({"apply": self._trap})
        write = js.Proxy.new(self._arrived.push.bind(self._arrived), self._handler)
        sink = js.WritableStream.new(js_object({"write": write, "close": end, "abort": break_}))
        # Its outcome is told to the sink; nobody else needs it, but a rejection must be received.
        outcome = create_once_callable(_ignore)
        started(body.pipeTo.bind(body, sink)).then(outcome, outcome)

    async def take(self) -> bytes:
        """
        Wait until something has arrived, and take all of it; at the end, b"".

        Raises:
            JsException: The connection broke, and everything before that was taken.
        """
        while True:
            if not self._arrived.length and not self._ended:
                await self._bell
            if not self._arrived.length:
                break
            # `push` was given the stream's controller beside each chunk.
            taken = self._arrived.splice(0).filter(js.ArrayBuffer.isView).to_py()
            if self._room is not None:
                self._room.resolve()
                self._room = None
            if data := b"".join(taken):
                return data
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
        if self._timer is None and self._bell.awaited:
            self._gather(_GATHER_MS[0])
            self._bell.ring()
        if self._arrived.length < _ROOM_CHUNKS:
            return None
        self._room = js.Promise.withResolvers()
        return self._room.promise

    def _look(self) -> None:
        """Wake whoever waits for what has arrived, and look again soon; if nothing has, let the next chunk call."""
        self._timer = None
        arrived = self._arrived.length
        if arrived and self._bell.awaited:
            shortest, longest = _GATHER_MS
            self._gather(min(2 * self._gathered_ms, longest) if arrived >= _CROWD else shortest)
            self._bell.ring()
        else:
            self._handler.apply = self._trap

    def _gather(self, ms: int) -> None:
        """Let chunks arrive without Python for a while."""
        self._gathered_ms = ms
        self._handler.apply = None
        self._timer = js.setTimeout(self._looker, ms)

    def _end(self) -> None:
        """Learn that nothing more comes."""
        self._ended = True
        if self._timer is not None:
            js.clearTimeout(self._timer)
        self._bell.ring()
        self._release()

    def _break(self, reason: object) -> None:
        """Learn that the connection broke, or was closed by whoever aborted the fetch."""
        self._error = as_exception(reason)
        self._end()

    def _release(self) -> None:
        """Give back what JavaScript called, once it will call no more."""
        if not (self._ended and self._closed):
            return
        for proxy in self._proxies:
            proxy.destroy()
        self._proxies = []


def _ignore(_outcome: object) -> None:
    """Receive what nobody needs."""
