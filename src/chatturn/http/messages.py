"""HTTP as values: what came in, what goes out.  Nothing here knows a server."""

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
        method: In upper case.
        path: As sent: percent-encoded, without the query.
        query: As sent, without the question mark.
        headers: Names in lower case.
        read: Reads the body once; the argument is the most bytes to take, and a longer body raises
            `PayloadTooLarge` without having been read whole.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    read: Callable[[int], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """
    A response: its body is there, or is streamed.

    Attributes:
        status: The HTTP status.
        headers: Names as they go out.
        body: The body, where it is not streamed.
        stream: Writes the body to the sink it is given, closes it, and never raises.  It must be run to its
            end even if the client goes away.
        late: Makes the response that this one stands for, where it takes as long as a turn; must be run to its end even
            if the client goes away, and never raises.
        background: What is to be done beside the response, and must not delay it; never raises.
        passed_on: The platform's own response, which somebody else has made: it goes out as it is.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    stream: Callable[[Sink], Awaitable[None]] | None = field(default=None, compare=False)
    late: "Callable[[], Awaitable[HttpResponse]] | None" = field(default=None, compare=False)
    background: Callable[[], Awaitable[None]] | None = field(default=None, compare=False)
    passed_on: object = field(default=None, compare=False)


def accepted_type(request: HttpRequest, offered: Sequence[str]) -> str:
    """Return which of the *offered* media types the request asks for first; the first of them if it names none."""
    for part in request.headers.get("accept", "").split(","):
        name, *parameters = [text.strip().lower() for text in part.split(";")]
        if name in offered and not any(_REFUSED.fullmatch(parameter) for parameter in parameters):
            return name
    return offered[0]
