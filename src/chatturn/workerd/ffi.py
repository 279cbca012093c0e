"""
Values and promises across the border to JavaScript: each conversion once, each explicit.

A call from Python that returns a promise is expensive: Pyodide makes a future of it at once, 75 us, and awaiting
the future takes 175 us more.  A Python function that is made a JavaScript one and taken back costs 45 us.  Everything
else is cheap: a call, a callback from JavaScript, a JavaScript object that becomes visible, each 5 to 10 us.  So
here a promise never crosses as what a call returns, no task is woken by way of the event loop, timers take their
functions from a pool, and JavaScript's own functions are looked up once; see `started`, `Bell` and `Timer`.

Text is expensive, too: Pyodide copies it character by character, 30 to 100 us for 1,000, while bytes are copied at
once.  So text that may be long crosses as bytes.  JavaScript's own functions make it text or parse it as JSON, in a
chain that does not come back to Python in between; see `js_texts` and `parse_js`.
"""

import asyncio
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import cache, partial
from time import monotonic as _monotonic
from typing import Any, Final, Self

import js
from pyodide.ffi import JsException, JsProxy, create_proxy, jsnull, to_js

from chatturn.gathering import Work

__all__ = [
    "LONG_BYTES",
    "Bell",
    "RequestAlarm",
    "Timer",
    "allow_run_sync",
    "as_exception",
    "free",
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
_array_from: Final = js.Array.from_
_from_entries: Final = js.Object.fromEntries
_stringify: Final = js.JSON.stringify
_set_timeout: Final = js.setTimeout
_clear_timeout: Final = js.clearTimeout

_NULL_FOR_NONE: Final[Mapping[Any, Any]] = {None: jsnull}

LONG_BYTES: Final = 16_000
"""Bytes in JavaScript's memory, from this number on, are freed by who has made them."""

work: Final = Work()
"""Counts the tasks that bells have woken; a plain number, so all requests of the isolate may share it."""

_run_sync_is_allowed = False


def allow_run_sync() -> None:
    """From now on wake tasks through the event loop, which is slower, on stacks that `run_sync` can set aside."""
    global _run_sync_is_allowed  # noqa: PLW0603 -- a fact about the isolate, no state of a request
    _run_sync_is_allowed = True


def run_sync_is_allowed() -> bool:
    """Say whether `allow_run_sync` was called."""
    return _run_sync_is_allowed


def started(function: JsProxy, argument: Any = None) -> JsProxy:
    """
    Call *function*, which returns a promise, and return that promise as it is.

    The call is made by ``Array.from``, whose result is an array and so no promise.  *function* gets an index, too,
    which methods with fewer parameters ignore.
    """
    return _array_from(_array_of(argument), function)[0]


async def settled(promise: JsProxy, *, within_s: float | None = None) -> Any:
    """
    Wait for *promise*, which `started` returned.  If the wait is cancelled or times out, the promise runs on.

    Raises:
        JsException: It was rejected.
        TimeoutError: It did not settle within *within_s* seconds.
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
    Calls *callback* once after *after_s* seconds, unless cancelled before.  A ``with`` block cancels it at its end.

    The platform's ``setTimeout`` has two parameters, so it passes no arguments to the function; it runs a timer of 0 ms
    as a microtask, which cannot be cancelled.  So each pending timer has a function of its own, taken from a pool, and
    no timer is shorter than 1 ms.

    The platform may call a function for an earlier timer whose cancellation had no effect, for example because it came
    from another request, where the timer's number means nothing.  Then the current timer is set again for its own time.

    Args:
        after_s: Seconds; less than 0.001 counts as 0.001.
        callback: Called by JavaScript, outside any task.

    Attributes:
        late_s: How many seconds after its time it called; 0 before the call.
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
        """Cancel the timer; does nothing if it has called."""
        if self._slot.timer is self:
            _clear_timeout(self._timer)
            self._slot.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def call(self) -> None:
        """Call the callback."""
        self._callback()

    def wait_on(self, left_s: float) -> None:
        """Set the timer again, for *left_s* seconds."""
        self._timer = _set_timeout(self._slot.function, max(left_s * 1000, _SHORTEST_MS))


class _Slot:
    """
    A JavaScript function for one pending timer at a time.

    Attributes:
        function: What the platform calls when the time is up.
        timer: The pending timer; None for a free slot.
    """

    __slots__ = ("function", "timer")

    def __init__(self) -> None:
        self.function: JsProxy = create_proxy(self._time_is_up)
        self.timer: Timer | None = None

    def release(self) -> None:
        """Free the slot for another timer."""
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
"""A timer called up to 5 ms early is on time: the platform's clock and timers have whole milliseconds only."""

_DROPPED_AFTER_S: Final = 60.0
"""A timer this much late was dropped: the platform drops the timers of a finished request without a notice."""

_free_slots: Final[list[_Slot]] = []
"""The slots without a pending timer; made in requests, since no proxy may be made at import."""

_slots: Final[list[_Slot]] = []
"""All slots, free or not."""

_FEW_SLOTS: Final = 128
_look_at = _FEW_SLOTS


def _new_slot() -> _Slot:
    """Make a slot, or free those whose timers were dropped and take one; checked when the slots in use have doubled."""
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
    An `Alarm` of one request, which any other request may ring.

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
        """Wait until it rings, or until *within_s* seconds are over."""
        with suppress(TimeoutError):
            await settled(self._deferred.promise, within_s=within_s)


class Bell:
    """
    Wakes the one task that awaits it, within the call of `ring` itself if JavaScript has made that call.

    A future would wake the task through the event loop: a MessageChannel and a new WebAssembly stack every time, which
    together cost more than relaying a chunk.
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
        """Wake the task, if one waits."""
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

    # The methods of a future that asyncio calls.

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
    """Return the reason of a rejected promise as an exception."""
    return reason if isinstance(reason, JsException) else js_error(str(reason))


def js_object(members: Mapping[str, Any]) -> JsProxy:
    """Make a plain JavaScript object; without this, a dict arrives as a Map."""
    return to_js(members, dict_converter=_from_entries)


def js_arguments(values: Sequence[str | int | float | None]) -> list[Any]:
    """Make arguments for a JavaScript call; None would arrive as undefined, which D1 refuses."""
    return [*map(_NULL_FOR_NONE.get, values, values)]


def js_texts(*texts: str) -> JsProxy:
    """Make a JavaScript array of *texts*, however long they are."""
    contents = (to_js(text.encode("utf-8", "surrogatepass")) for text in texts)
    found: JsProxy = _array_from(_array_of(*map(_array_of, contents)), _text_function())
    return found


def parse_js(value: JsProxy) -> Any:
    """
    Convert a JavaScript value that is JSON to Python, in one crossing whatever its size.

    ``to_py()`` would cross once per member, and leave null as ``jsnull``, which is not None.
    """
    texts = _array_from(_array_of(value), _stringify)  # type: ignore[arg-type]  # it is JavaScript's
    encoded = _array_from(texts, _bytes_function())[0]
    content: bytes = encoded.to_bytes()
    if len(content) > LONG_BYTES:
        free(encoded)
    return json.loads(content)


def free(content: JsProxy) -> None:
    """
    Free the memory of a long Uint8Array that nobody reads any more.

    Only the small object around it counts for JavaScript's collector, which would leave megabytes of them where they
    are.
    """
    content.buffer.transfer(0)


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
