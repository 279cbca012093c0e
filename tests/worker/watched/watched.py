"""The project's Worker, and beside its routes: what it has imported since the start, and one request many times."""

import json
import sys
from typing import Any

import js
from pyodide.ffi import JsProxy
from workers import Request

from entry import Default as _Default
from entry import Session

__all__ = ["Default", "Session"]

_AT_THE_START = set(sys.modules)


class Default(_Default):
    """The handlers of the project's Worker."""

    async def fetch(self, request: Request) -> JsProxy:
        """Answer a request, or one of those about this Worker."""
        name, _, rest = js.URL.new(request.url).pathname[1:].partition("/")
        if name == "imported":
            return _json(sorted(set(sys.modules) - _AT_THE_START))
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


def _json(value: Any) -> JsProxy:
    return js.Response.new(json.dumps(value))
