"""The seam to HTTP servers: a request out, a response whose body arrives in pieces."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

__all__ = ["ADDRESS", "Transport", "TransportRequest", "TransportResponse", "is_address", "is_header_value"]

ADDRESS: Final = "an address of a server, https://api.example.com/v1: without a user, a password, a # or a space"
"""What `is_address` wants, in words."""

_ADDRESS: Final = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:[/?][!-~]*)?")
_LAST_PORT: Final = 65_535


def is_address(text: str) -> bool:
    """
    Say whether *text* is a URL that can be asked.

    What `fetch` refuses it quotes in its message, and so would the log: a password in front of the host, for instance.
    """
    if not _ADDRESS.fullmatch(text) or "#" in text:
        return False
    try:
        return (urlsplit(text).port or 0) <= _LAST_PORT
    except ValueError:  # brackets that hold no IPv6 address, a port beyond the last
        return False


def is_header_value(text: str) -> bool:
    """Say whether a header can carry *text*: printable ASCII."""
    return text.isascii() and text.isprintable()


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
