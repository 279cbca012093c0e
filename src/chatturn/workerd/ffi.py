"""
Values and promises across the border to JavaScript: each conversion once, each explicit.

A call from Python that returns a promise is dear: Pyodide makes a future of it at once, 75 us, and awaiting
that takes 175 more.  Everything else is cheap: other calls 1 to 5 us, a callback from JavaScript 2 us.  So
here a promise never crosses as what a call returns; see `started`.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

import js
from pyodide.ffi import JsException, JsProxy, create_once_callable, jsnull, to_js

__all__ = ["js_arguments", "js_error", "js_object", "parse_js", "read_env", "settled", "started"]


def started(function: JsProxy, argument: Any = None) -> JsProxy:
    """
    Call *function*, which returns a promise, and return that promise as it is.

    The call is made by ``Array.prototype.map``, whose result is an array and so no promise.  *function* gets
    an index and the array, too, which methods with fewer parameters ignore.
    """
    return js.Array.of(argument).map(function)[0]


async def settled(promise: JsProxy) -> Any:
    """
    Wait for *promise*, one of `started`.  Cancelled, it lets the promise go on alone.

    Raises:
        JsException: It was rejected.
    """
    # Not `loop.create_future()`: the one of Pyodide's loop takes another turn of the JavaScript event loop.
    future: asyncio.Future[Any] = asyncio.Future()

    def fulfil(value: Any) -> None:
        on_rejected.destroy()
        if not future.done():
            future.set_result(value)

    def reject(reason: Any) -> None:
        on_fulfilled.destroy()
        if not future.done():
            future.set_exception(_as_exception(reason))

    on_fulfilled, on_rejected = create_once_callable(fulfil), create_once_callable(reject)
    promise.then(on_fulfilled, on_rejected)
    return await future


def _as_exception(reason: Any) -> BaseException:
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


def js_error(message: str) -> JsProxy:
    """Make a JavaScript Error: a promise that rejects with anything else never wakes a Python ``await``."""
    return js.Error.new(message)


def read_env(env: JsProxy, names: Iterable[str]) -> dict[str, str]:
    """Read the vars and secrets called *names*; one that is not set is left out."""
    values = ((name, getattr(env, name, None)) for name in names)
    return {name: value for name, value in values if isinstance(value, str)}
