"""
Values and promises across the border to JavaScript: each conversion once, each explicit.

A call from Python that returns a promise is dear: Pyodide makes a future of it at once, 75 us, and awaiting
that takes 175 more.  Everything else is cheap: other calls 1 to 5 us, a callback from JavaScript 2 us.  So
here a promise never crosses as what a call returns, and no task is woken by way of the event loop; see
`started` and `Bell`.
"""

import asyncio
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import Context
from functools import partial
from typing import Any

import js
from pyodide.ffi import JsException, JsProxy, create_once_callable, create_proxy, jsnull, to_js

__all__ = [
    "Bell",
    "RequestAlarm",
    "allow_run_sync",
    "as_exception",
    "call_later",
    "js_arguments",
    "js_error",
    "js_object",
    "parse_js",
    "read_env",
    "read_other_env",
    "run_sync_is_allowed",
    "settled",
    "started",
]


_run_sync_is_allowed = False


def allow_run_sync() -> None:
    """From now on wake tasks on stacks that `run_sync` can set aside, as the event loop does.  It costs more."""
    global _run_sync_is_allowed  # noqa: PLW0603 -- a fact about the isolate, no state of a request
    _run_sync_is_allowed = True


def run_sync_is_allowed() -> bool:
    """Say whether `allow_run_sync` was called."""
    return _run_sync_is_allowed


def started(function: JsProxy, argument: Any = None) -> JsProxy:
    """
    Call *function*, which returns a promise, and return that promise as it is.

    The call is made by ``Array.prototype.map``, whose result is an array and so no promise.  *function* gets
    an index and the array, too, which methods with fewer parameters ignore.
    """
    return js.Array.of(argument).map(function)[0]


async def settled(promise: JsProxy, *, within_s: float | None = None) -> Any:
    """
    Wait for *promise*, one of `started`.  Cancelled or out of time, it lets the promise go on alone.

    Raises:
        JsException: It was rejected.
        TimeoutError: It had not settled *within_s* seconds.
    """
    bell = Bell()
    values: list[Any] = []
    errors: list[BaseException] = []

    def fulfil(value: Any) -> None:
        on_rejected.destroy()
        values.append(value)
        bell.ring()

    def reject(reason: Any) -> None:
        on_fulfilled.destroy()
        errors.append(as_exception(reason))
        bell.ring()

    def expire() -> None:
        errors.append(TimeoutError())
        bell.ring()

    on_fulfilled, on_rejected = create_once_callable(fulfil), create_once_callable(reject)
    promise.then(on_fulfilled, on_rejected)
    with nullcontext() if within_s is None else call_later(within_s, expire):
        await bell
    if errors:
        raise errors[0]
    return values[0]


@contextmanager
def call_later(after_s: float, callback: Callable[[], object]) -> Iterator[None]:
    """Call *callback* after a while, unless the block ends before; a third of what `asyncio.timeout` costs."""
    proxy = create_proxy(callback)
    timer = js.setTimeout(proxy, after_s * 1000)
    try:
        yield
    finally:
        js.clearTimeout(timer)
        proxy.destroy()


class RequestAlarm:
    """
    An `Alarm` of one request, which any other may ring.

    The promise belongs to the request that made it, so its task goes on there, with its own connections: workerd
    sees to that, by the flag ``handle_cross_request_promise_resolution``, on since 2024-10-14.  An event or a future
    of asyncio would go on in the request that rings.  The timer keeps the platform from taking the request for hung.
    """

    def __init__(self) -> None:
        self._deferred = js.Promise.withResolvers()

    def ring(self) -> None:
        """Let `wait` return."""
        self._deferred.resolve()

    async def wait(self, within_s: float) -> None:
        """Wait until it rings, or the time is over."""
        with suppress(TimeoutError):
            await settled(self._deferred.promise, within_s=within_s)


class Bell:
    """
    Wakes the one task that awaits it, and does so inside `ring` if JavaScript has called that.

    A future would have the event loop call the task: a MessageChannel and a fresh stack of WebAssembly's every
    time, which together cost more than all that the task does when it relays a chunk.
    """

    _asyncio_future_blocking = False  # asyncio's protocol for whatever a task may wait for

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake: Callable[[], object] | None = None
        self._cancelled = False

    @property
    def awaited(self) -> bool:
        """Whether a task waits."""
        return self._wake is not None

    def ring(self) -> None:
        """Let the task go on, if one waits."""
        wake, self._wake = self._wake, None
        if wake is None:
            return
        if _run_sync_is_allowed or asyncio.current_task() is not None:
            self._loop.call_soon(wake)
        else:
            wake()

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        yield self

    # What a task calls.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the task."""
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        """Remember how to wake the task."""
        self._wake = partial(context.run, callback, self)

    def cancel(self, msg: object = None) -> bool:
        """Wake the task with a cancellation, soon."""
        del msg
        if self._wake is None:
            return False
        self._cancelled = True
        self._loop.call_soon(self.ring)
        return True

    def result(self) -> None:
        """Return nothing, or raise if the task was cancelled."""
        if self._cancelled:
            self._cancelled = False
            raise asyncio.CancelledError


def as_exception(reason: Any) -> BaseException:
    """Return what a promise was rejected with as what Python can raise."""
    return reason if isinstance(reason, JsException) else js_error(str(reason))


def js_object(members: Mapping[str, Any]) -> JsProxy:
    """Make a plain JavaScript object; without this, a dict arrives as a Map."""
    return to_js(members, dict_converter=js.Object.fromEntries)


def js_arguments(values: Iterable[str | int | float | None]) -> list[Any]:
    """Make arguments for a JavaScript call; None would arrive as undefined, which D1 refuses."""
    return [jsnull if value is None else value for value in values]


def parse_js(value: JsProxy) -> Any:
    """
    Turn a JavaScript value that is JSON into Python's.

    One crossing and two native parsers, whatever the size; ``to_py()`` crosses once per member and leaves null
    as ``jsnull``, which is not None.
    """
    return json.loads(js.JSON.stringify(value))


def js_error(message: str) -> JsException:
    """Make a JavaScript Error: a promise that rejects with anything else never wakes a Python ``await``."""
    return js.Error.new(message)


def read_env(env: JsProxy, names: Iterable[str]) -> dict[str, str]:
    """Read the vars and secrets called *names*; one that is not set is left out."""
    values = ((name, getattr(env, name, None)) for name in names)
    return {name: value for name, value in values if isinstance(value, str)}


def read_other_env(env: JsProxy, names: Iterable[str]) -> dict[str, str]:
    """Read the vars and secrets that are not called *names*; bindings are no text and are left out."""
    return read_env(env, set(js.Object.keys(env)) - set(names))
