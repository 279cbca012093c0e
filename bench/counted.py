"""
An entry module around the real one, mounted beside it: the same Worker on a database that counts.

``GET /bench/counts`` tells what was counted since it was last asked; with ``?byte_codes`` those are counted from then
on, too, which takes several times as long.  The files that are deployed stay as they are: the driver is replaced where
`deployment` finds it.  Where `border.mjs` stands in front of the host, what crosses the border is told as well.
"""

import json
import sys
from collections.abc import Sequence
from types import CodeType
from typing import Any, Final
from urllib.parse import urlsplit

import js
from pyodide.ffi import JsProxy
from workers import Request, Response

from chatturn.database.api import Result, Statement
from chatturn.workerd import d1, deployment, ffi
from entry import Default as Real

__all__ = ["CountingDatabase", "Default"]

_COUNTED: Final = ("round_trips", "statements", "rows_written", "rows_read")
_COUNTS: Final = dict.fromkeys(_COUNTED, 0)
_BYTE_CODES: Final = [0]
_TOOL: Final = 2
"""A number that `sys.monitoring` has for profilers."""


class Default(Real):
    """The Worker, and a way to read the counts."""

    async def fetch(self, request: Request) -> Any:
        """Answer one request."""
        address = urlsplit(request.url)
        if address.path != "/bench/counts":
            return await super().fetch(request)
        if address.query == "byte_codes":
            _count_byte_codes()
        return Response(_taken())


def _taken() -> str:
    """Return the counts as JSON, and begin anew."""
    border = getattr(js, "borderCounts", None)
    crossed = {} if border is None else border.to_py()
    text = json.dumps({**_COUNTS, **crossed, "byte_codes": _BYTE_CODES[0]})
    _COUNTS.update(dict.fromkeys(_COUNTED, 0))
    _BYTE_CODES[0] = 0
    for name in crossed:
        setattr(border, name, 0)
    return text


def _count_byte_codes() -> None:
    monitoring = sys.monitoring  # type: ignore[attr-defined]  # came with Python 3.12; this is 3.13
    if monitoring.get_tool(_TOOL) is None:
        monitoring.use_tool_id(_TOOL, "bench")
        monitoring.register_callback(_TOOL, monitoring.events.INSTRUCTION, _count_byte_code)
        monitoring.set_events(_TOOL, monitoring.events.INSTRUCTION)


def _count_byte_code(_code: CodeType, _offset: int) -> None:
    _BYTE_CODES[0] += 1


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
