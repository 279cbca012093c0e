"""
An entry module around the real one, mounted beside it: the same Worker on a database that counts.

``GET /bench/counts`` tells what was counted since it was last asked.  The files that are deployed stay as they
are: the driver is replaced where `deployment` finds it.
"""

import json
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from pyodide.ffi import JsProxy
from workers import Request, Response

from chatturn.database.api import Result, Statement
from chatturn.workerd import d1, deployment, ffi
from entry import Default as Real

__all__ = ["CountingDatabase", "Default"]

_COUNTED: Final = ("round_trips", "statements", "rows_written", "rows_read")
_COUNTS: Final = dict.fromkeys(_COUNTED, 0)


class Default(Real):
    """The Worker, and a way to read the counts."""

    async def fetch(self, request: Request) -> Any:
        """Answer one request."""
        if urlsplit(request.url).path != "/bench/counts":
            return await super().fetch(request)
        text = json.dumps(_COUNTS)
        _COUNTS.update(dict.fromkeys(_COUNTED, 0))
        return Response(text)


class CountingDatabase(d1.D1Database):
    """D1, and how often it was asked."""

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements*, and count them as one round trip."""
        _COUNTS["round_trips"] += 1
        _COUNTS["statements"] += len(statements)
        return await super().batch(statements)


def _counting_parse(results: JsProxy) -> Any:
    """Parse what D1 answered, and add up the rows that it counted itself."""
    parsed = ffi.parse_js(results)
    for result in parsed:
        _COUNTS["rows_written"] += result["meta"].get("rows_written", 0)
        _COUNTS["rows_read"] += result["meta"].get("rows_read", 0)
    return parsed


vars(deployment)["D1Database"] = CountingDatabase
vars(d1)["parse_js"] = _counting_parse
