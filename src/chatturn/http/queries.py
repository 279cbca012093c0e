"""
What a query string may say, and a cursor wherever it stands.

As in a body, a member that is not known is refused rather than ignored, and each refusal names the member.
"""

import re
from collections.abc import Mapping
from datetime import date
from typing import Final
from urllib.parse import parse_qsl

from chatturn.chat.lists.lists import RUN_STATUSES, MessageQuery, TurnQuery
from chatturn.chat.usage.totals import USAGE_KEYS, UsageQuery
from chatturn.errors import InvalidField
from chatturn.http.limits import MAX_ID_CHARACTERS, MAX_TURN_INDEX
from chatturn.http.messages import HttpRequest
from chatturn.http.problems import shortened, shown

__all__ = [
    "MAX_CURSOR",
    "LogCursor",
    "check_no_query",
    "read_cursor",
    "read_message_query",
    "read_turn_query",
    "read_usage_query",
    "ticket_in",
]

MAX_CURSOR: Final = 2**53 - 1
"""What JSON numbers carry exactly everywhere."""

MAX_LIST_CURSOR_CHARACTERS: Final = 1_000
MAX_LISTED: Final = 200
_LISTED: Final = 50

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,15}")


class LogCursor:
    """
    Which part of which log a reader wants.

    Attributes:
        after: The seq of the last line that it has seen; None for none.
        attempt: The attempt that finished the log, if the reader knows: then the answer never changes.
    """

    __slots__ = ("after", "attempt")

    def __init__(self, after: int | None, attempt: int | None) -> None:
        self.after = after
        self.attempt = attempt


def check_no_query(request: HttpRequest) -> None:
    """
    Refuse a query string where nothing is asked by one.

    Raises:
        InvalidField: There is one.
    """
    if request.query:
        raise InvalidField("this address takes no query", field="query")


def ticket_in(query: str) -> str | None:
    """Return the ticket that a *query* shows, whatever else stands in it; None for none."""
    return dict(parse_qsl(query)).get("ticket") if "ticket=" in query else None


def read_cursor(request: HttpRequest, *, id_suffix: str = "") -> LogCursor:
    """
    Read where to begin: ``?after=`` or ``Last-Event-ID``, which must agree if both are there.

    Args:
        request: For a stream; its ticket, if it shows one, has been looked at.
        id_suffix: What the ids of this reader's events end with.

    Raises:
        InvalidField: One of them is no number from 0, or they disagree.
    """
    members = _members(request.query, {"after", "attempt", "ticket"})
    after = _number(members["after"], "after", MAX_CURSOR) if "after" in members else None
    last_event_id = request.headers.get("last-event-id", "").removesuffix(id_suffix)
    if last_event_id:
        told = _number(last_event_id, "Last-Event-ID", MAX_CURSOR)
        if after is not None and after != told:
            raise InvalidField(f"Last-Event-ID is {told}, but after is {after}; send one of them", field="after")
        after = told
    attempt = _number(members["attempt"], "attempt", MAX_CURSOR) if "attempt" in members else None
    return LogCursor(after, attempt)


def read_message_query(request: HttpRequest) -> MessageQuery:
    """
    Read which of a session's messages are wanted: ``?before=TURN_INDEX&limit=``.

    Raises:
        InvalidField: A member is unknown, or not what it should be.
    """
    members = _members(request.query, {"before", "limit"})
    before = _number(members["before"], "before", MAX_TURN_INDEX + 1) if "before" in members else None
    return MessageQuery(before=before, limit=_limit(members))


def read_turn_query(request: HttpRequest) -> TurnQuery:
    """
    Read which turns are wanted: ``?status=&tenant=&limit=&after=``.

    Raises:
        InvalidField: A member is unknown, or not what it should be.
    """
    members = _members(request.query, {"after", "limit", "status", "tenant"})
    status = members.get("status")
    if status is not None and status not in RUN_STATUSES:
        raise InvalidField(f"status is {shown(status)}, but must be one of {', '.join(RUN_STATUSES)}", field="status")
    return TurnQuery(status=status, tenant_id=_tenant(members), limit=_limit(members), after=_list_cursor(members))


def read_usage_query(request: HttpRequest) -> UsageQuery:
    """
    Read which usage is wanted: ``?by=&from=&to=&tenant=&limit=&after=``.

    Raises:
        InvalidField: A member is unknown, or not what it should be.
    """
    members = _members(request.query, {"after", "by", "from", "limit", "tenant", "to"})
    by = members.get("by", "day")
    if by not in USAGE_KEYS:
        raise InvalidField(f"by is {shown(by)}, but must be one of {', '.join(USAGE_KEYS)}", field="by")
    first_day, last_day = _day(members, "from"), _day(members, "to")
    if first_day is not None and last_day is not None and first_day > last_day:
        raise InvalidField(f"from is {first_day}, which is after to, {last_day}", field="from")
    return UsageQuery(
        by=by,
        tenant_id=_tenant(members),
        first_day=first_day,
        last_day=last_day,
        limit=_limit(members),
        after=_list_cursor(members),
    )


def _members(query: str, known: set[str]) -> Mapping[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=16)
    except ValueError:
        raise InvalidField("the query is not name=value&… in percent-encoded UTF-8", field="query") from None
    members = dict(pairs)
    for name in members:
        if name not in known:
            text = f"{shown(name)} is not a member of this query; there are {', '.join(sorted(known))}"
            raise InvalidField(text, field=shortened(name))
    if len(members) != len(pairs):
        raise InvalidField("the query names a member twice", field="query")
    return members


def _tenant(members: Mapping[str, str]) -> str | None:
    tenant = members.get("tenant")
    if tenant is not None and not (0 < len(tenant) <= MAX_ID_CHARACTERS and tenant.isprintable()):
        raise InvalidField(f"tenant must be 1 to {MAX_ID_CHARACTERS} printable characters", field="tenant")
    return tenant


def _list_cursor(members: Mapping[str, str]) -> str | None:
    after = members.get("after")
    if after is not None and len(after) > MAX_LIST_CURSOR_CHARACTERS:
        raise InvalidField("after is not a cursor of this list", field="after")
    return after


def _day(members: Mapping[str, str], name: str) -> str | None:
    text = members.get(name)
    if text is None:
        return None
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    raise InvalidField(f"{name} is {shown(text)}, but must be a day, YYYY-MM-DD", field=name)


def _limit(members: Mapping[str, str]) -> int:
    limit = _number(members["limit"], "limit", MAX_LISTED) if "limit" in members else _LISTED
    if limit < 1:
        raise InvalidField(f"limit must be from 1 to {MAX_LISTED}", field="limit")
    return limit


def _number(text: str, field: str, most: int) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > most:
        raise InvalidField(f"{field} is {shown(text)}, but must be a whole number from 0 to {most}", field=field)
    return int(text)
