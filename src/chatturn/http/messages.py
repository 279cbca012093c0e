"""HTTP as values: what came in, what goes out.  Nothing here knows a server."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from chatturn.chat.sink import Sink

__all__ = ["HttpRequest", "HttpResponse"]


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
        background: What is to be done after the response, and must not delay it; never raises.
        passed_on: The platform's own response, which somebody else has made: it goes out as it is.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    stream: Callable[[Sink], Awaitable[None]] | None = field(default=None, compare=False)
    background: Callable[[], Awaitable[None]] | None = field(default=None, compare=False)
    passed_on: object = field(default=None, compare=False)
