"""Query strings: the members of each route's query, as tables, and their readers; and the cursor in a header."""

from typing import Final
from urllib.parse import parse_qsl

from chatturn.chat.lists.lists import RUN_STATUSES, MessageQuery, TurnQuery
from chatturn.chat.lists.revisions import LONGEST_WAIT_S
from chatturn.chat.usage.totals import USAGE_KEYS, UsageQuery
from chatturn.errors import InvalidField
from chatturn.http.limits import MAX_ID_CHARACTERS, MAX_TICKET_CHARACTERS, MAX_TURN_INDEX, MAX_VERSION
from chatturn.http.messages import HttpRequest
from chatturn.http.parameters import Query, day, one_of, opaque, printable, read_query, whole_number
from chatturn.http.user_messages import MAX_NAME_CHARACTERS

__all__ = [
    "EXPORT_QUERY",
    "FILES_QUERY",
    "LAST_EVENT_ID",
    "LOG_QUERY",
    "MAX_CURSOR",
    "MESSAGES_QUERY",
    "PEOPLE_EXPORT_QUERY",
    "PEOPLE_QUERY",
    "SESSIONS_QUERY",
    "TURNS_QUERY",
    "USAGE_QUERY",
    "VERSION_QUERY",
    "LogCursor",
    "check_no_query",
    "read_cursor",
    "read_file_query",
    "read_message_query",
    "read_turn_query",
    "read_usage_query",
    "read_version_query",
    "ticket_in",
]

MAX_CURSOR: Final = 2**53 - 1
"""The last integer that every JSON reader carries exactly."""

MAX_LIST_CURSOR_CHARACTERS: Final = 1_000
MAX_LISTED: Final = 200
_LISTED: Final = 50

_LIMIT: Final = whole_number("the most entries to return", least=1, most=MAX_LISTED, default=_LISTED)
_NEXT: Final = opaque("the `next` of the previous page", most=MAX_LIST_CURSOR_CHARACTERS, kind="cursor")
_TENANT: Final = printable(
    "the tenant whose data is read; only an operator may name another than their own", most=MAX_ID_CHARACTERS
)

_VERSION: Final = whole_number(
    "the version; without it the one that is running, otherwise the one that counts", least=1, most=MAX_VERSION
)

VERSION_QUERY: Final[Query] = {"version": _VERSION}
LOG_QUERY: Final[Query] = {
    "after": whole_number("the seq of the last line that the client has seen", most=MAX_CURSOR),
    "attempt": whole_number("the attempt that finished the log, if the client knows it", most=MAX_CURSOR),
    "version": _VERSION,
    "ticket": opaque("a ticket, which stands in for the bearer token", most=MAX_TICKET_CHARACTERS, kind="ticket"),
}
LAST_EVENT_ID: Final = whole_number("the same as `after`; an EventSource sends it when it reconnects", most=MAX_CURSOR)

MESSAGES_QUERY: Final[Query] = {
    "before": whole_number("the `next` of the previous page", most=MAX_TURN_INDEX + 1),
    "limit": _LIMIT,
    "wait": whole_number(
        "with If-None-Match: the most seconds that the response may wait for a change", most=LONGEST_WAIT_S, default=0
    ),
}
TURNS_QUERY: Final[Query] = {
    "status": one_of("the status of the turns to return", RUN_STATUSES),
    "tenant": _TENANT,
    "limit": _LIMIT,
    "after": _NEXT,
}
USAGE_QUERY: Final[Query] = {
    "by": one_of("what the sums are grouped by", USAGE_KEYS, default="day"),
    "from": day("the first day, UTC; without it thirty days are returned, up to the last day"),
    "to": day("the last day, UTC; without it today"),
    "tenant": _TENANT,
    "limit": _LIMIT,
    "after": _NEXT,
}


FILES_QUERY: Final[Query] = {"name": printable("the name of the file", most=MAX_NAME_CHARACTERS)}
SESSIONS_QUERY: Final[Query] = {
    "user": printable(
        "the user whose sessions are listed; without it the caller, and for an operator all users",
        most=MAX_ID_CHARACTERS,
    ),
    "tenant": _TENANT,
    "limit": _LIMIT,
    "after": _NEXT,
}
EXPORT_QUERY: Final[Query] = {
    "after": opaque("the `after` of an export that ended with `more`", most=MAX_LIST_CURSOR_CHARACTERS, kind="cursor"),
}
PEOPLE_QUERY: Final[Query] = {"tenant": _TENANT}
PEOPLE_EXPORT_QUERY: Final[Query] = {**PEOPLE_QUERY, **EXPORT_QUERY}


class LogCursor:
    """
    The part of a log that a reader asks for.

    Attributes:
        after: The seq of the last line that the reader has seen; None for none.
        attempt: The attempt that finished the log, if the reader names it: then the response never changes.
        version: The version of the turn; None for the version that is shown.
    """

    __slots__ = ("after", "attempt", "version")

    def __init__(self, after: int | None, attempt: int | None, version: int | None = None) -> None:
        self.after = after
        self.attempt = attempt
        self.version = version


def check_no_query(request: HttpRequest) -> None:
    """
    Refuse a request with a query string, for an address that has none.

    Raises:
        InvalidField: The request has one.
    """
    if request.query:
        raise InvalidField("this address takes no query", field="query")


def ticket_in(query: str) -> str | None:
    """Return the ticket in a *query*, without a look at the other members; None if there is none."""
    return dict(parse_qsl(query)).get("ticket") if "ticket=" in query else None


def read_cursor(request: HttpRequest, *, id_suffix: str = "") -> LogCursor:
    """
    Read where a stream is to begin: after ``Last-Event-ID``, or else after ``?after=``.

    An EventSource whose address has ``after`` reconnects with both: then ``Last-Event-ID`` is the later one.

    Args:
        request: The request for a stream; its ticket, if it has one, was checked before.
        id_suffix: The end of the ids of this reader's events.

    Raises:
        InvalidField: A member is unknown, or one of the two is no whole number from 0.
    """
    said = read_query(request.query, LOG_QUERY)
    after = said["after"]
    last_event_id = request.headers.get("last-event-id", "").removesuffix(id_suffix)
    if last_event_id:
        after = LAST_EVENT_ID.read(last_event_id, "Last-Event-ID")
    return LogCursor(after, said["attempt"], said["version"])


def read_version_query(request: HttpRequest) -> int | None:
    """
    Read which version of a turn is wanted: ``?version=``; None if the query names none.

    Raises:
        InvalidField: A member is unknown, or has a wrong value.
    """
    version: int | None = read_query(request.query, VERSION_QUERY)["version"]
    return version


def read_file_query(request: HttpRequest) -> str:
    """
    Read a file's name: ``?name=``; "" if the query has none.

    Raises:
        InvalidField: A member is unknown, or has a wrong value.
    """
    name: str | None = read_query(request.query, FILES_QUERY)["name"]
    return name or ""


def read_message_query(request: HttpRequest) -> tuple[MessageQuery, int]:
    """
    Read which of a session's messages are wanted, and how long to wait for a change: ``?before=&limit=&wait=``.

    Raises:
        InvalidField: A member is unknown, or has a wrong value.
    """
    said = read_query(request.query, MESSAGES_QUERY)
    return MessageQuery(before=said["before"], limit=said["limit"]), said["wait"]


def read_turn_query(request: HttpRequest) -> TurnQuery:
    """
    Read which turns are wanted: ``?status=&tenant=&limit=&after=``.

    Raises:
        InvalidField: A member is unknown, or has a wrong value.
    """
    said = read_query(request.query, TURNS_QUERY)
    return TurnQuery(status=said["status"], tenant_id=said["tenant"], limit=said["limit"], after=said["after"])


def read_usage_query(request: HttpRequest) -> UsageQuery:
    """
    Read which usage is wanted: ``?by=&from=&to=&tenant=&limit=&after=``.

    Raises:
        InvalidField: A member is unknown, or has a wrong value.
    """
    said = read_query(request.query, USAGE_QUERY)
    first_day, last_day = said["from"], said["to"]
    if first_day is not None and last_day is not None and first_day > last_day:
        raise InvalidField(f"from is {first_day}, which is after to, {last_day}", field="from")
    return UsageQuery(
        by=said["by"],
        tenant_id=said["tenant"],
        first_day=first_day,
        last_day=last_day,
        limit=said["limit"],
        after=said["after"],
    )
