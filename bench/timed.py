"""
An entry module: *timed*, the project's Worker, which also says what its timers cost.

``/timers`` answers with microseconds, for a timer that is set and cancelled and for one that fires.
"""

import asyncio
import json
import time
from typing import Any

import js
from workers import Request

from chatturn.workerd.ffi import Timer
from entry import Default as _Default

__all__ = ["Default"]

_CANCELLED = 2_000
_FIRED = 500


class Default(_Default):
    """The handlers of the project's Worker."""

    async def fetch(self, request: Request) -> Any:
        """Answer one request."""
        if request.url.endswith("/timers"):
            return js.Response.new(json.dumps({"cancelled": _cancelled(), "fired": await _fired()}))
        return await super().fetch(request)


def _cancelled() -> float:
    began = time.perf_counter()
    for _ in range(_CANCELLED):
        Timer(60.0, _nothing).cancel()
    return (time.perf_counter() - began) * 1e6 / _CANCELLED


async def _fired() -> float:
    """Measure timers of 1 ms, all set before the first of them fires: what is left is waiting for the last."""
    over = asyncio.get_running_loop().create_future()
    left = [_FIRED]

    def count() -> None:
        left[0] -= 1
        if not left[0]:
            over.set_result(time.perf_counter())

    began = time.perf_counter()
    for _ in range(_FIRED):
        Timer(0.001, count)
    ended: float = await over
    return (ended - began) * 1e6 / _FIRED


def _nothing() -> None:
    pass
