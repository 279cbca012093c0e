"""The project's Worker, and beside its routes: what it has imported and made since the start, and its timers."""

import asyncio
import json
import sys
import time
from functools import partial
from typing import Any

import js
from pyodide.ffi import JsProxy
from workers import Request

from chatturn.workerd import deployment, ffi, timers
from entry import Default as _Default
from entry import Session

__all__ = ["Default", "Session"]

_AT_THE_START = set(sys.modules)
_ffi: Any = ffi  # its private parts, too
_deployment: Any = deployment

_made: list[None] = []
_make_isolate = _deployment.make_isolate


def _counted(*arguments: Any) -> Any:
    _made.append(None)
    return _make_isolate(*arguments)


_deployment.make_isolate = _counted


class Default(_Default):
    """The handlers of the project's Worker."""

    async def fetch(self, request: Request) -> JsProxy:
        """Answer a request, or one of those about this Worker."""
        name, _, rest = js.URL.new(request.url).pathname[1:].partition("/")
        if name == "imported":
            return _json(sorted(set(sys.modules) - _AT_THE_START))
        if name == "made":
            return _json({"isolates": len(_made), "loops_wrapped": _wrapped_again()})
        if name == "late_timer":
            return _json(await _late_timer())
        if name == "dropped_timers":
            return _json(await _dropped_timers(int(rest)))
        if name == "often":
            return _json(await self._often(*rest.split("/", 1)))
        return await super().fetch(request)

    async def _often(self, times: str, path: str) -> list[dict[str, Any]]:
        """GET *path* so many times; return the answers that differ."""
        found = {}
        for _ in range(int(times)):
            answer: Any = await super().fetch(Request(f"http://worker.invalid/{path}"))
            seen = {"status": answer.status, "body": await answer.text()}
            found[json.dumps(seen)] = seen
        return list(found.values())


def _wrapped_again() -> bool:
    """Say whether a second call wraps the loop's `call_later` again."""
    loop = asyncio.get_running_loop()
    before = loop.call_later
    timers.use_cancellable_timers()
    return loop.call_later is not before


async def _late_timer() -> dict[str, Any]:
    """Cancel a timer in vain, as from another request, and give its function to the next: return when who was called."""
    called: dict[str, float] = {}
    clear, _ffi._clear_timeout = _ffi._clear_timeout, print
    try:
        first = _ffi.Timer(0.02, lambda: called.setdefault("first", 0.0))
        first.cancel()
    finally:
        _ffi._clear_timeout = clear
    began = time.monotonic()
    second = _ffi.Timer(0.2, lambda: called.setdefault("second", time.monotonic() - began))
    shared = second._slot is first._slot
    await asyncio.sleep(0.4)
    return {"called": called, "shared": shared}


async def _dropped_timers(count: int) -> dict[str, Any]:
    """Let go of timers that never fire, as those of a request that is over: return how many functions there are."""
    clock, skipped = _ffi._monotonic, 0.0
    never, _ffi._set_timeout = _ffi._set_timeout, lambda _function, _ms: 0
    _ffi._monotonic = lambda: clock() + skipped
    called: list[int] = []
    try:
        for number in range(count):
            _ffi.Timer(0.05, partial(called.append, number))
            skipped += 1.0
    finally:
        _ffi._set_timeout, _ffi._monotonic = never, clock
    return {"functions": len(_ffi._slots), "called": len(called)}


def _json(value: Any) -> JsProxy:
    return js.Response.new(json.dumps(value))
