"""
Values and promises across the border to JavaScript: each conversion once, each explicit.

A call from Python that returns a promise is dear: Pyodide makes a future of it at once, 75 us, and awaiting
that takes 175 more.  A Python function that is made a JavaScript one and taken back costs 45 us.  Everything
else is cheap: a call, a callback from JavaScript, a JavaScript object that becomes visible, each 5 to 10 us.  So
here a promise never crosses as what a call returns, no task is woken by way of the event loop, timers take their
functions from a pool, and JavaScript's own functions are looked up once; see `started`, `Bell` and `Timer`.

Text is dear, too: Pyodide copies it character by character, 30 to 100 us for a thousand, while bytes are copied
at once.  So what may be long crosses as bytes, and is made text or read as JSON by JavaScript's own functions,
strung together without coming back in between; see `js_texts` and `parse_js`.
"""

import asyncio
import json
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from contextvars import Context
from functools import cache, partial
from time import monotonic as _monotonic
from typing import Any, Final, Self

import js
from pyodide.ffi import JsException, JsProxy, create_proxy, jsnull, to_js

from chatturn.gathering import Work

__all__ = [
    "Bell",
    "RequestAlarm",
    "Timer",
    "allow_run_sync",
    "as_exception",
    "js_arguments",
    "js_error",
    "js_object",
    "js_texts",
    "parse_js",
    "read_env",
    "run_sync_is_allowed",
    "settled",
    "started",
    "work",
]

# JavaScript's own: the same for every request, so that they may be looked up at import.
_array_of: Final = js.Array.of
_from_entries: Final = js.Object.fromEntries
_stringify: Final = js.JSON.stringify
_set_timeout: Final = js.setTimeout
_clear_timeout: Final = js.clearTimeout

work: Final = Work()
"""What bells have woken; a number, which the isolate's requests may share."""

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
    return _array_of(argument).map(function)[0]


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
        values.append(value)
        bell.ring()

    def reject(reason: Any) -> None:
        errors.append(as_exception(reason))
        bell.ring()

    def expire() -> None:
        errors.append(TimeoutError())
        bell.ring()

    promise.then(fulfil, reject)
    if within_s is None:
        await bell
    else:
        with Timer(within_s, expire):
            await bell
    if errors:
        raise errors[0]
    return values[0]


class Timer:
    """
    Calls back once after a while, unless it is cancelled before.  A ``with`` block cancels it at its end.

    The platform passes no arguments to a timer's function, and makes a microtask that nothing takes back of a timer of
    0 ms (its ``setTimeout`` has two parameters).  So each pending timer has a function of its own, taken
    from a pool, and no timer is shorter than 1 ms.

    A function may be called for a timer of before: one that was cancelled in vain, as in another request, where its
    number means nothing.  Then its owner waits on, until its own time has come.

    Args:
        after_s: How long; 1 ms at least.
        callback: Called by JavaScript, outside any task.

    Attributes:
        late_s: How long after its time it has called; 0 before.
    """

    __slots__ = ("_callback", "_slot", "_timer", "due_s", "late_s")

    def __init__(self, after_s: float, callback: Callable[[], object]) -> None:
        self._callback = callback
        self.late_s = 0.0
        self.due_s = _monotonic() + after_s
        self._slot = slot = _free_slots.pop() if _free_slots else _new_slot()
        slot.timer = self
        self._timer: int = _set_timeout(slot.function, max(after_s * 1000, _SHORTEST_MS))

    def cancel(self) -> None:
        """Take the timer back; does nothing if it has called."""
        if self._slot.timer is self:
            _clear_timeout(self._timer)
            self._slot.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def call(self) -> None:
        """Call back."""
        self._callback()

    def wait_on(self, left_s: float) -> None:
        """Set the timer again."""
        self._timer = _set_timeout(self._slot.function, max(left_s * 1000, _SHORTEST_MS))


class _Slot:
    """
    A JavaScript function for one pending timer at a time.

    Attributes:
        function: What the platform calls when the time is up.
        timer: Whose time that is; None for a slot that is free.
    """

    __slots__ = ("function", "timer")

    def __init__(self) -> None:
        self.function: JsProxy = create_proxy(self._time_is_up)
        self.timer: Timer | None = None

    def release(self) -> None:
        """Let the next timer have the function."""
        self.timer = None
        _free_slots.append(self)

    def _time_is_up(self) -> None:
        timer = self.timer
        if timer is None:
            return
        left_s = timer.due_s - _monotonic()
        if left_s > _EARLY_S:
            timer.wait_on(left_s)
            return
        timer.late_s = max(0.0, -left_s)
        self.release()
        timer.call()


_SHORTEST_MS: Final = 1.0
_EARLY_S: Final = 0.005
"""The platform's clock has whole milliseconds, and its timers leave out fractions of one."""

_DROPPED_AFTER_S: Final = 60.0
"""How late a timer may be, at most: the platform drops those of a request that is over, and tells nobody."""

_free_slots: Final[list[_Slot]] = []
"""As many as timers were pending at once, at most; made in requests, since no proxy may be made at import."""

_slots: Final[list[_Slot]] = []
"""All of them."""

_FEW_SLOTS: Final = 128
_look_at = _FEW_SLOTS


def _new_slot() -> _Slot:
    """Make one, or take one whose timer was dropped; they are looked for whenever there are twice as many."""
    global _look_at  # noqa: PLW0603 -- beside the list
    if len(_slots) >= _look_at:
        latest_s = _monotonic() - _DROPPED_AFTER_S
        for slot in _slots:
            if slot.timer is not None and slot.timer.due_s < latest_s:
                slot.release()
        _look_at = max(_FEW_SLOTS, 2 * (len(_slots) - len(_free_slots)))
        if _free_slots:
            return _free_slots.pop()
    _slots.append(_Slot())
    return _slots[-1]


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
            return
        work.pieces += 1
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
    return to_js(members, dict_converter=_from_entries)


def js_arguments(values: Iterable[str | int | float | None]) -> list[Any]:
    """Make arguments for a JavaScript call; None would arrive as undefined, which D1 refuses."""
    return [jsnull if value is None else value for value in values]


def js_texts(*texts: str) -> JsProxy:
    """Make a JavaScript array of *texts*, however long they are."""
    contents = (to_js(text.encode("utf-8", "surrogatepass")) for text in texts)
    found: JsProxy = _array_of(*map(_array_of, contents)).map(_text_function())
    return found


def parse_js(value: JsProxy) -> Any:
    """
    Turn a JavaScript value that is JSON into Python's, whatever its size.

    ``to_py()`` would cross once per member, and leave null as ``jsnull``, which is not None.
    """
    return json.loads(_array_of(value).map(_stringify).map(_bytes_function())[0].to_bytes())


# Made at the first request and kept: no JavaScript object may be made at import.


@cache
def _text_function() -> JsProxy:
    """Return a function that decodes UTF-8; its argument is a list of one, for `decode` refuses others beside it."""
    decoder = js.TextDecoder.new("utf-8", ignoreBOM=True)  # which is a character of the text
    function: JsProxy = js.Reflect.apply.bind(None, decoder.decode, decoder)
    return function


@cache
def _bytes_function() -> JsProxy:
    """Return a function that encodes text as UTF-8, whatever else it is given."""
    encoder = js.TextEncoder.new()
    function: JsProxy = encoder.encode.bind(encoder)
    return function


def js_error(message: str) -> JsException:
    """Make a JavaScript Error: a promise that rejects with anything else never wakes a Python ``await``."""
    return js.Error.new(message)


def read_env(env: JsProxy) -> dict[str, Any]:
    """Read all vars, secrets and bindings."""
    return {name: getattr(env, name) for name in js.Object.keys(env)}
