"""
`Transport` over the platform's ``fetch``.

Cancelling a Python task does not stop its fetch, so every way out of a request goes through its
AbortController: an aborted signal closes the connection, whether headers or body were on their way.

The platform pumps a body into a stream whose sink is ours (see `_Inbox`): a chunk that arrives costs a call into
Python and no promise, or no Python at all.  A reader gets all chunks that have arrived at once.
"""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Final

import js
from pyodide.ffi import JsBuffer, JsException, JsProxy, create_proxy, to_js

from chatturn.errors import BackendTransportError
from chatturn.gathering import Gathering
from chatturn.transport import TransportRequest, TransportResponse
from chatturn.workerd.ffi import Bell, Timer, as_exception, js_error, js_object, settled, started, work
from chatturn.workerd.headers import LazyHeaders

__all__ = ["FetchResponse", "FetchTransport"]

_ROOM_CHUNKS: Final = 256
"""How many chunks may wait for the reader before the platform stops reading the connection."""

# JavaScript's own, looked up once.
_new_controller: Final = js.AbortController.new
_fetch: Final = js.fetch
_new_set: Final = js.Set.new
_new_proxy: Final = js.Proxy.new
_new_writable: Final = js.WritableStream.new
_without_this: Final = js.Function.call  # Function.prototype.call, by a path that the snapshot can store
_apply: Final = js.Reflect.apply
_set_member: Final = js.Reflect.set
_define_member: Final = js.Object.defineProperty
_array_from: Final = js.Array.from_
_array_of: Final = js.Array.of
_from_hex: Final = js.Uint8Array.fromHex
_with_resolvers: Final = js.Promise.withResolvers


class FetchTransport:
    """Sends requests with ``fetch``; a redirect is returned, not followed."""

    @asynccontextmanager
    async def send(self, request: TransportRequest) -> AsyncIterator[TransportResponse]:
        """Send *request*; see `Transport.send`."""
        controller = _new_controller()
        options = {
            "method": request.method,
            "headers": dict(request.headers),
            "redirect": "manual",
            "signal": controller.signal,
        }
        if request.body:
            options["body"] = to_js(request.body.encode())
        try:
            try:
                response = await settled(started(_fetch.bind(None, request.url, js_object(options))))
            except JsException as error:
                raise BackendTransportError(str(error), backend="fetch") from error
            yield FetchResponse(response)
        finally:
            controller.abort(_over())


class FetchResponse:
    """
    A platform's Response.

    Args:
        response: The Response.
        signal: Ends its body when aborted; None if the caller aborts the request itself.
    """

    def __init__(self, response: JsProxy, signal: JsProxy | None = None) -> None:
        self._response = response
        self._signal = signal
        self.status: int = response.status
        self.headers: Mapping[str, str] = LazyHeaders(response.headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body; see `TransportResponse.chunks`."""
        body = self._response.body
        if not body:
            return
        inbox = _Inbox(body, self._signal)
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

    Its ``write`` is a Proxy around the ``add`` of a Set.  While the Proxy's trap is set, every chunk calls into
    Python, which takes it at once.  In a burst, or while the isolate is busy, the trap is not set (see `Gathering`):
    chunks gather in the Set without any Python, and a timer collects them, until it finds none or no task waits.

    Args:
        body: The ReadableStream to pump.  Aborting its fetch ends the pump.
        signal: If aborted, ends the pump and cancels *body*; None for no signal.
    """

    def __init__(self, body: JsProxy, signal: JsProxy | None) -> None:
        self._bell = Bell()
        self._taken: list[bytes] = []
        self._gathering = Gathering(work)
        self._gathered = _new_set()
        self._timer: Timer | None = None
        self._room: JsProxy | None = None
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None
        self._arrives = create_proxy(self._arrive)
        self._fills = create_proxy(self._arrive_and_wait)
        # A trap is called with its target, a `this` and a list of arguments: a chunk, and a controller that is not
        # needed.  Each object that crosses costs 30 us, so the trap calls a setter, which gets the chunk alone.
        chunks = _define_member(js_object({}), "chunk", js_object({"set": self._arrives}))
        self._trap = _trap_of(_set_member.bind(None, chunks, "chunk"))
        self._handler = js_object({"apply": self._trap})
        write = _new_proxy(self._gathered.add.bind(self._gathered), self._handler)
        sink = _new_writable(js_object({"write": write}))
        pump = body.pipeTo.bind(body, sink) if signal is None else body.pipeTo.bind(body, sink, _until(signal))
        started(pump).then(self._end, self._break)

    async def take(self) -> bytes:
        """
        Wait until bytes have arrived, and take all of them; return b"" at the end of the body.

        Raises:
            JsException: The connection broke, and all bytes that came before have been taken.
        """
        while True:
            if not self._taken and not self._ended:
                await self._bell
            data, self._taken = b"".join(self._taken), []
            self._make_room()
            if data:
                return data
            if self._ended:
                break
        if self._error is not None:
            raise self._error
        return b""

    def close(self) -> None:
        """Drop all further chunks."""
        self._closed = True
        self._make_room()  # otherwise the pump would wait for ever
        self._release()

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.resolve()
            self._room = None

    # What the platform calls.

    def _arrive(self, chunk: JsBuffer) -> None:
        """Take a chunk; if 256 or more wait for the reader, make the pump wait after the next one."""
        if self._closed:
            return
        self._taken.append(chunk.to_bytes())
        if self._bell.awaited:
            gather_s = self._gathering.came(time.monotonic())
            self._deliver()
            if gather_s is not None:
                self._gather(gather_s)
        elif len(self._taken) >= _ROOM_CHUNKS:
            self._handler.apply = _trap_of(self._fills)

    def _arrive_and_wait(self, chunk: JsBuffer, _controller: object) -> JsProxy | None:
        """Take a chunk; return a promise to wait for until there is room for another."""
        self._handler.apply = self._trap
        if self._closed:
            return None
        self._taken.append(chunk.to_bytes())
        self._bell.ring()
        self._room = _with_resolvers()
        return self._room.promise

    def _deliver(self) -> None:
        """Wake whoever waits."""
        self._bell.ring()
        self._gathering.delivered(time.monotonic())

    def _gather(self, seconds: float) -> None:
        """Let chunks gather without Python for *seconds*."""
        if self._closed or self._ended:
            return
        self._handler.apply = None
        self._timer = Timer(seconds, self._look)

    def _look(self) -> None:
        """Collect the gathered chunks; gather again if that is worth it and a task waits, else set the trap again."""
        timer, self._timer = self._timer, None
        if timer is not None:
            work.fired(timer.due_s + timer.late_s, timer.late_s)
        came = self._collect()
        if came and not self._bell.awaited:
            self._handler.apply = self._trap
            return
        gather_s = self._gathering.gathered(came)
        if came:
            self._deliver()
        if gather_s is None:
            self._handler.apply = self._trap
        else:
            self._gather(gather_s)

    def _collect(self) -> int:
        """Take the gathered chunks; return how many there are."""
        came: int = self._gathered.size
        if came:
            # No single call of JavaScript joins arrays of bytes, but one joins texts: so the bytes go through hex.
            hexes = _array_from(self._gathered, _hex_function())
            together: JsBuffer = _array_of(hexes).map(_concatenate_function()).map(_from_hex)[0]
            self._taken.append(together.to_bytes())
            self._gathered.clear()
        return came

    def _end(self, _value: object = None) -> None:
        """Learn that the body has ended."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed:
            self._collect()
        self._bell.ring()
        self._release()

    def _break(self, reason: object) -> None:
        """Learn that the connection broke, or that the fetch was aborted."""
        self._error = as_exception(reason)
        self._end()

    def _release(self) -> None:
        """Destroy the proxies that JavaScript calls, once the pump has ended and the reader has closed."""
        if self._ended and self._closed:
            self._arrives.destroy()
            self._fills.destroy()


# Made at the first request and kept: no JavaScript object may be made at import.


@cache
def _hex_function() -> JsProxy:
    """Return a function that writes its first argument, a Uint8Array, as hex, and ignores further arguments."""
    function: JsProxy = _without_this.bind(js.Uint8Array.prototype.toHex)
    return function


@cache
def _concatenate_function() -> JsProxy:
    """Return a function that joins the texts in its first argument, an array, and ignores further arguments."""
    function: JsProxy = js.Function.prototype.apply.bind(js.String.prototype.concat, "")
    return function


def _trap_of(function: JsProxy) -> JsProxy:
    """Return a trap that calls *function* with the arguments of the guarded call."""
    return _without_this.bind(_apply.bind(None, function))


def _until(signal: JsProxy) -> JsProxy:
    return js_object({"signal": signal})


@cache
def _over() -> JsException:
    """Return the reason for aborting a finished request.  Made once: an Error records its stack, which costs 50 us."""
    return js_error("the request is over")
