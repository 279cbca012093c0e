"""Requests and responses as values, without a server."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from chatturn.chat.turn.sinks import Sink

__all__ = ["HttpRequest", "HttpResponse", "accepted_type"]

_REFUSED: Final = re.compile(r"q=0(\.0*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """
    A request whose body has not been read yet.

    Attributes:
        method: The method, in upper case.
        path: The path as sent: percent-encoded, without the query.
        query: The query as sent, without the question mark.
        headers: The headers, their names in lower case.
        read: Reads the body; can be called once.  The argument is the most bytes that it may have: a longer body
            raises `PayloadTooLarge` before it was read whole.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    read: Callable[[int], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """
    A response whose body is known, or is streamed.

    Attributes:
        status: The HTTP status.
        headers: The headers, their names as they are sent.
        body: The body, if it is not streamed.
        content: A stream of the platform's that is the body: it is sent on without coming into our memory.
        stream: Writes the body to a sink, closes the sink, and never raises.  It must be run to its end even if the
            client goes away.
        late: Makes the response to send in place of this one, which may take as long as a turn; never raises.  It must
            be run to its end even if the client goes away.
        background: Is run beside the response, and must not delay it; never raises.
        passed_on: A response object of the platform, made by a session's owner, which is sent unchanged.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    stream: Callable[[Sink], Awaitable[None]] | None = field(default=None, compare=False)
    late: "Callable[[], Awaitable[HttpResponse]] | None" = field(default=None, compare=False)
    background: Callable[[], Awaitable[None]] | None = field(default=None, compare=False)
    content: object = field(default=None, compare=False)
    passed_on: object = field(default=None, compare=False)


def accepted_type(request: HttpRequest, offered: Sequence[str]) -> str:
    """Return the first of the request's ``Accept`` types that is *offered*; the first offered type if there is none."""
    for part in request.headers.get("accept", "").split(","):
        name, *parameters = [text.strip().lower() for text in part.split(";")]
        if name in offered and not any(_REFUSED.fullmatch(parameter) for parameter in parameters):
            return name
    return offered[0]
