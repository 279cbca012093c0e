"""The route for usage, which operators read as JSON, or as CSV for a spreadsheet."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from chatturn.chat.usage.totals import GROUP_NAMES, Sums, UsageGroup, UsagePage
from chatturn.http.application import Call
from chatturn.http.messages import HttpResponse, accepted_type
from chatturn.http.problems import json_response
from chatturn.http.query_strings import read_usage_query

__all__ = ["get_usage", "shown_usage"]

_CSV: Final = "text/csv"
_TYPES: Final = ("application/json", _CSV)
_MONEY: Final = frozenset({"costMicroUsd", "unpricedCalls"})
_KINDS: Final = ("delivered", "wasted")

# The first characters of what a spreadsheet takes for a formula.  Source: OWASP, "CSV Injection".
_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_BLANKS_OF_FORMULAS: Final = ("\t", "\r", "\n")


async def get_usage(call: Call) -> HttpResponse:
    """Show the sums of usage; the address of the next page is also in the ``Link`` header."""
    query = read_usage_query(call.request)
    page = await call.service.usage(query)
    response = (
        _csv_response(query.by, page) if accepted_type(call.request, _TYPES) == _CSV else _json_response(query.by, page)
    )
    if page.next is None:
        return response
    members = {**dict(parse_qsl(call.request.query)), "after": page.next}
    link = f'<{call.request.path}?{urlencode(members)}>; rel="next"'
    return replace(response, headers={**response.headers, "Link": link})


def shown_usage(sums: Sums, *, money: bool) -> Sums:
    """Return a turn's usage; without its cost, which is for operators, unless *money* is true."""
    hidden = frozenset[str]() if money else _MONEY
    parts = {kind: {name: value for name, value in sums[kind].items() if name not in hidden} for kind in _KINDS}
    return {"runningCalls": sums["runningCalls"], **parts}


def _json_response(by: str, page: UsagePage) -> HttpResponse:
    return json_response(
        {
            "by": by,
            "from": page.first_day,
            "to": page.last_day,
            "usage": [{**group.names, **group.sums} for group in page.groups],
            "total": page.total,
            "next": page.next,
        }
    )


def _csv_response(by: str, page: UsagePage) -> HttpResponse:
    """Make a table with one line for each group; an unknown value is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    names = GROUP_NAMES[by]
    writer.writerow([*names, *_flat(page.total)])
    writer.writerows(_line(group, names) for group in page.groups)
    headers = {
        "Content-Type": f"{_CSV}; charset=utf-8",
        "Cache-Control": "no-store",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }
    return HttpResponse(status=200, headers=headers, body=text.getvalue().encode())


def _line(group: UsageGroup, names: Sequence[str]) -> list[Any]:
    texts = [group.names[name] or "" for name in names]
    return [*map(_harmless, texts), *_flat(group.sums).values()]


def _harmless(text: str) -> str:
    """Return *text* so that no spreadsheet takes it for a formula, even after blanks."""
    return f"'{text}" if text.startswith(_BLANKS_OF_FORMULAS) or text.lstrip().startswith(_FORMULA) else text


def _flat(sums: Sums) -> Mapping[str, Any]:
    flat: dict[str, Any] = {}
    for name, part in sums.items():
        if name in _KINDS:
            flat |= {f"{name}.{each}": value for each, value in part.items()}
        else:
            flat[name] = part
    return flat
