"""The seam to HTTP servers: a request out, a response whose body arrives in pieces."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Transport", "TransportRequest", "TransportResponse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportRequest:
    """An HTTP request, its body already encoded as JSON text; its headers have keys, and are not shown."""

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: str = ""


class TransportResponse(Protocol):
    """An HTTP response whose headers have arrived."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""

    def chunks(self) -> AsyncIterator[bytes]:
        """
        Yield the body: at each step all bytes that have arrived since the last, never an empty chunk.

        Raises:
            BackendTransportError: The connection broke.
        """


class Transport(Protocol):
    """Sends HTTP requests.  Redirects are not followed."""

    def send(self, request: TransportRequest) -> AbstractAsyncContextManager[TransportResponse]:
        """
        Send *request*; entering waits for the headers, leaving closes the connection, body read or not.

        Cancellation while entering, inside, or while leaving aborts the request and its body at once.

        Raises:
            BackendTransportError: No response: refused, reset, unresolved.  ``upstream_status`` is 0.
        """
